"""Which sequences a step trains on."""

import numpy as np
import pytest

from prunella.data.order import batch_for_step, permute, sequences_for_batch
from prunella.records import Window


def window(first, last):
    return Window(first=first, last=last)


def test_steps_take_batches_in_order_when_nothing_is_skipped():
    assert [batch_for_step(step, ()) for step in (1, 2, 3, 1000)] == [0, 1, 2, 999]


@pytest.mark.parametrize(
    ("skipped", "expected"),
    [
        ((window(0, 0),), [1, 2, 3, 4, 5]),
        ((window(2, 3),), [0, 1, 4, 5, 6]),
        ((window(4, 4), window(1, 2)), [0, 3, 5, 6, 7]),
        ((window(1, 3), window(2, 4)), [0, 5, 6, 7, 8]),
        ((window(1, 4), window(2, 3)), [0, 5, 6, 7, 8]),
        ((window(1, 1), window(1, 1)), [0, 2, 3, 4, 5]),
        ((window(1, 1), window(2, 2)), [0, 3, 4, 5, 6]),
        ((window(100, 200),), [0, 1, 2, 3, 4]),
    ],
)
def test_skipped_windows_are_jumped_over(skipped, expected):
    assert [batch_for_step(step, skipped) for step in range(1, 6)] == expected


def test_random_windows_leave_exactly_the_batches_outside_them():
    rng = np.random.default_rng(0)
    for _ in range(50):
        firsts = rng.integers(0, 60, size=6)
        skipped = tuple(window(int(first), int(first + rng.integers(0, 8))) for first in firsts)
        left = [batch for batch in range(200) if not any(w.first <= batch <= w.last for w in skipped)]

        taken = [batch_for_step(step, skipped) for step in range(1, 101)]

        assert taken == left[:100]


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ValueError, match="count from 1"):
        batch_for_step(0, ())


@pytest.mark.parametrize("n_sequences", [1, 2, 3, 5, 16, 17, 63, 64, 65, 257])
@pytest.mark.parametrize("global_sequences", [1, 7, 16])
def test_every_sequence_comes_exactly_once_an_epoch(n_sequences, global_sequences):
    n_batches = -(-3 * n_sequences // global_sequences)

    stream = np.concatenate(
        [
            sequences_for_batch(batch, seed=7, n_sequences=n_sequences, global_sequences=global_sequences)
            for batch in range(n_batches)
        ]
    )

    assert stream.dtype == np.int64
    for epoch in range(3):
        part = stream[epoch * n_sequences : (epoch + 1) * n_sequences]
        assert sorted(part) == list(range(n_sequences))


def test_every_sequence_of_a_large_set_comes_exactly_once_an_epoch():
    order = permute(np.arange(100_003), 100_003, seed=7, epoch=2)

    assert np.array_equal(np.sort(order), np.arange(100_003))


def test_the_stream_of_sequences_does_not_depend_on_how_it_is_cut_into_batches():
    whole = sequences_for_batch(0, seed=7, n_sequences=100, global_sequences=240)

    parts = [sequences_for_batch(batch, seed=7, n_sequences=100, global_sequences=16) for batch in range(15)]

    assert np.array_equal(np.concatenate(parts), whole)


def test_each_epoch_and_each_seed_has_another_order():
    indices = np.arange(1000)
    orders = [permute(indices, 1000, seed=seed, epoch=epoch) for seed in (7, 8) for epoch in (0, 1)]

    agreement = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]

    assert max(agreement) < 0.02


def test_the_order_is_shuffled_over_the_whole_set():
    n = 10_000
    order = permute(np.arange(n), n, seed=7, epoch=0)

    correlation = np.corrcoef(np.arange(n), order)[0, 1]
    neighbours = np.mean(np.abs(np.diff(order)))

    assert abs(correlation) < 0.05
    assert neighbours == pytest.approx(n / 3, rel=0.05)


def test_every_place_is_equally_likely_in_a_small_set():
    places = np.array([permute(np.arange(5), 5, seed=1, epoch=epoch) for epoch in range(1000)])

    counts = np.array([[np.sum(places[:, index] == value) for value in range(5)] for index in range(5)])

    chi_squared = np.sum((counts - 200) ** 2 / 200)
    assert chi_squared < 60, "16 degrees of freedom: above 60 comes by chance once in two million"


def test_the_order_is_the_one_that_was_recorded_when_it_was_designed():
    """A changed order would break the resume of every run that exists."""
    order = sequences_for_batch(3, seed=7, n_sequences=100, global_sequences=8)

    assert order.tolist() == RECORDED


def test_a_set_without_sequences_is_refused():
    with pytest.raises(ValueError, match="at least one sequence"):
        sequences_for_batch(0, seed=7, n_sequences=0, global_sequences=4)


RECORDED = [35, 87, 58, 10, 57, 39, 85, 92]
