"""The codec is strict, loses nothing, and names the place of every mistake."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

import pytest

from prunella import codec
from prunella.errors import ConfigError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    weight_kg: float
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    name: str
    colour: Colour = Colour.RED
    parts: tuple[Part, ...] = ()
    limits: tuple[tuple[int, ...], ...] = ()
    rates: tuple[float, ...] = ()
    is_spare: bool = False
    note: str | None = None
    ceiling_s: float | None = None
    extra: dict[str, str | int | float | bool | None] = field(default_factory=dict)


FULL = Whole(
    name="näme",
    colour=Colour.BLUE,
    parts=(Part(weight_kg=0.1), Part(weight_kg=-0.0, count=3)),
    limits=((1, 2), (), (3,)),
    rates=(0.9, 1e-300),
    is_spare=True,
    note="",
    ceiling_s=math.inf,
    extra={"a": 1, "b": 1.5, "c": True, "d": None, "e": "x"},
)


@pytest.mark.parametrize("value", [FULL, Whole(name="bare")], ids=["full", "defaults"])
def test_decoding_gives_back_what_was_encoded(value: Whole) -> None:
    decoded = codec.decode(Whole, codec.encode(value), "test")

    assert decoded == value
    assert codec.canonical_json(decoded) == codec.canonical_json(value)


def test_a_bool_stays_a_bool_and_an_int_an_int_in_a_union() -> None:
    decoded = codec.decode(Whole, codec.encode(FULL), "test")

    assert [type(item) for item in decoded.extra.values()] == [int, float, bool, type(None), str]


@pytest.mark.parametrize(("number", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_float_that_json_lacks_travels_as_a_word(number: float, word: str) -> None:
    encoded = codec.encode(Part(weight_kg=number))

    decoded = codec.decode(Part, encoded, "test").weight_kg

    assert encoded["weight_kg"] == word
    assert decoded == number or (math.isnan(decoded) and math.isnan(number))


def test_the_canonical_form_depends_neither_on_order_nor_on_spelling_of_whole_floats() -> None:
    assert codec.canonical_json({"b": 1, "a": [1.5, None]}) == b'{"a":[1.5,null],"b":1}'
    assert codec.digest({"b": 1, "a": 2}) == codec.digest({"a": 2, "b": 1})
    assert codec.canonical_json(Part(weight_kg=2)) == codec.canonical_json(Part(weight_kg=2.0))


def test_a_value_and_its_decoded_copy_have_one_digest_even_when_ints_were_given_for_floats() -> None:
    given = Whole(name="x", rates=(1, 0), ceiling_s=60)

    decoded = codec.decode(Whole, codec.encode(given), "test")

    assert codec.digest(given) == codec.digest(decoded)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "here: expected a table, found list []"),
        ({}, "here: missing key 'name'"),
        ({"name": "x", "colur": "red"}, "here: unknown key 'colur'; did you mean 'colour'?"),
        ({"name": "x", "zzz": 1}, "here: unknown key 'zzz'; known: ceiling_s, colour"),
        ({"name": 3}, "here.name: expected str, found int 3"),
        ({"name": None}, "here.name: expected str, found nothing"),
        ({"name": "x", "colour": "green"}, "here.colour: expected one of red, blue, found str 'green'"),
        ({"name": "x", "colour": []}, "here.colour: expected one of red, blue, found list []"),
        ({"name": "x", "is_spare": 1}, "here.is_spare: expected bool, found int 1"),
        ({"name": "x", "limits": [[1], ["2"]]}, "here.limits[1][0]: expected int, found str '2'"),
        ({"name": "x", "limits": [[True]]}, "here.limits[0][0]: expected int, found bool True"),
        ({"name": "x", "rates": "0.5"}, "here.rates: expected a list, found str '0.5'"),
        ({"name": "x", "rates": ["0.5"]}, "here.rates[0]: expected float, found str '0.5'"),
        ({"name": "x", "rates": [False]}, "here.rates[0]: expected float, found bool False"),
        ({"name": "x", "parts": [{"weight_kg": 1, "count": 1.0}]}, "here.parts[0].count: expected int, found float 1.0"),
        ({"name": "x", "note": 5}, "here.note: expected str, found int 5"),
        ({"name": "x", "extra": {"k": [1]}}, "here.extra.k: expected str"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        codec.decode(Whole, value, "here")

    assert str(caught.value).startswith(message)
