"""What the checks of one node find, and what the rules say of it."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunella.config import GateConfig
from prunella.health_gate import checks
from prunella.health_gate.checks import Check, Measurement, measure
from prunella.health_gate.rules import bounds, judge, worst
from prunella.records import Health
from prunella.storage import FolderStore, Stamp

CPU = torch.device("cpu")
GATE = GateConfig()


def verdict(check: Check, value: float | None) -> Health:
    measurement = Measurement(check=check, value=value, duration_ms=1.0)
    return judge(measurement, bounds(GATE, devices=2)[check], node="node-0").health


@pytest.mark.parametrize("size", [16, 32, 64])
def test_healthy_arithmetic_lies_within_the_tolerance(size: int) -> None:
    product, reduction = checks.product_error_ulps(size, CPU), checks.reduction_error_ulps(size, CPU)

    assert 0 < product <= GATE.max_error_ulps / 4
    assert reduction <= GATE.max_error_ulps / 4


@pytest.mark.parametrize("size", [16, 64])
def test_one_flipped_mantissa_bit_in_a_product_is_caught(size: int) -> None:
    value = checks.product_error_ulps(size, CPU, disturb=checks.flip_largest)

    assert value > 1000 * GATE.max_error_ulps
    assert verdict(Check.MATRIX_PRODUCT, value) is Health.UNHEALTHY


def test_a_low_bit_of_the_largest_element_beyond_the_tolerance_is_caught() -> None:
    def flip_bit_eight(result: Tensor) -> None:
        flat = result.view(-1)
        flat.view(torch.int32)[int(flat.abs().argmax())] ^= 1 << 8

    value = checks.product_error_ulps(32, CPU, disturb=flip_bit_eight)

    assert verdict(Check.MATRIX_PRODUCT, value) is Health.UNHEALTHY


def test_a_non_finite_product_is_unhealthy() -> None:
    value = checks.product_error_ulps(16, CPU, disturb=lambda result: result.fill_(math.nan))

    assert verdict(Check.MATRIX_PRODUCT, value) is Health.UNHEALTHY


def test_the_same_product_twice_is_bit_identical() -> None:
    assert checks.differing_elements(64, CPU) == 0


def test_products_that_differ_by_one_bit_are_counted() -> None:
    runs = iter((0, 1))

    def flip_in_second_run(result: Tensor) -> None:
        result.view(-1).view(torch.int32)[3] ^= next(runs)

    value = checks.differing_elements(16, CPU, disturb=flip_in_second_run)

    assert value == 1
    assert verdict(Check.BIT_IDENTITY, value) is Health.UNHEALTHY


def test_healthy_memory_reads_back_every_pattern() -> None:
    assert checks.wrong_words(1, CPU) == 0


def test_a_stuck_memory_bit_is_found_by_the_patterns() -> None:
    def stick_bit(words: Tensor) -> None:
        words[77] |= 1 << 5

    value = checks.wrong_words(1, CPU, disturb=stick_bit)

    assert value == 3  # all zeros, one of the alternating patterns, and the word's own address 77 = 0b1001101
    assert verdict(Check.MEMORY_PATTERNS, value) is Health.UNHEALTHY


def test_a_crossed_address_line_is_found_by_the_address_pattern() -> None:
    def cross(words: Tensor) -> None:
        words[8] = words[4].clone()

    assert checks.wrong_words(1, CPU, disturb=cross) == 1


def test_the_store_probe_reads_back_what_it_wrote_and_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))

    probe = checks.probe_store(store, "probes/node-0.bin")

    assert probe.wrong_bytes == 0
    assert probe.skew_ms < GATE.max_clock_skew_ms
    assert store.list("probes") == []


def test_a_store_that_returns_other_bytes_is_counted(tmp_path: Path) -> None:
    class Forgetful(FolderStore):
        """A real store on a disk that loses the end of an object and flips its first byte."""

        def get(self, key: str) -> bytes:
            data = super().get(key)
            return bytes([data[0] ^ 1]) + data[1:-10]

    probe = checks.probe_store(Forgetful(str(tmp_path)), "probes/node-0.bin")

    assert probe.wrong_bytes == 11


@pytest.mark.parametrize(
    ("stamp_ns", "grain_ns", "skew_ms"), [(5_000_000, 0, 0.0), (2_000_000, 0, 2.0), (9_000_000, 1_000_000, 2.0)]
)
def test_clock_skew_is_the_distance_from_the_time_of_writing_beyond_the_grain(
    stamp_ns: int, grain_ns: int, skew_ms: float
) -> None:
    assert checks.outside_ms(Stamp(at_ns=stamp_ns, grain_ns=grain_ns), 4_000_000, 6_000_000) == skew_ms


@pytest.mark.parametrize(
    ("check", "value", "health"),
    [
        (Check.DEVICE_COUNT, 2.0, Health.HEALTHY),
        (Check.DEVICE_COUNT, 1.0, Health.UNHEALTHY),
        (Check.FREE_DISK, 63.0, Health.UNHEALTHY),
        (Check.FREE_DISK, 64.0, Health.HEALTHY),
        (Check.CLOCK_SKEW, 1000.5, Health.UNHEALTHY),
        (Check.REDUCTION, 64.0, Health.HEALTHY),
        (Check.REDUCTION, math.nan, Health.UNHEALTHY),
        (Check.OBJECT_STORE, 1.0, Health.UNHEALTHY),
        (Check.MEMORY_PATTERNS, None, Health.UNKNOWN),
    ],
)
def test_a_value_is_judged_by_its_bounds(check: Check, value: float | None, health: Health) -> None:
    assert verdict(check, value) is health


def test_a_measurement_the_device_refuses_is_unknown_and_says_why() -> None:
    def refuse() -> float:
        raise RuntimeError("device lost")

    measurement = measure(Check.REDUCTION, refuse, detail="cuda:3")

    result = judge(measurement, bounds(GATE, devices=1)[Check.REDUCTION], node="node-0")
    assert result.health is Health.UNKNOWN
    assert math.isnan(result.value)
    assert "cuda:3 RuntimeError: device lost" in result.detail


@pytest.mark.parametrize(
    ("found", "health"),
    [
        ([Health.HEALTHY, Health.HEALTHY], Health.HEALTHY),
        ([Health.HEALTHY, Health.UNKNOWN], Health.UNKNOWN),
        ([Health.UNKNOWN, Health.UNHEALTHY], Health.UNHEALTHY),
        ([], Health.UNKNOWN),
    ],
)
def test_unknown_is_never_healthy(found: list[Health], health: Health) -> None:
    assert worst(found) is health


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: torch.cuda.is_available() is false")
def test_a_healthy_gpu_passes_and_a_flipped_product_on_it_is_caught() -> None:
    gpu = torch.device("cuda", 0)

    values = (checks.product_error_ulps(256, gpu), checks.reduction_error_ulps(256, gpu))
    flipped = checks.product_error_ulps(256, gpu, disturb=checks.flip_largest)

    assert max(values) <= GATE.max_error_ulps
    assert flipped > GATE.max_error_ulps
    assert checks.differing_elements(256, gpu) == 0
    assert checks.wrong_words(16, gpu) == 0
