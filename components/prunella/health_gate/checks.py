"""Measurements on one node. Nothing here judges: the rules do.

Shapes: N rows and columns of a square matrix, W words of memory, E elements of a sum.
The reference is float64 arithmetic on the host, a code path (and on an accelerator a chip) other than the one measured.
A measurement that could not be taken has value None and says why; the rules turn that into `unknown`, never into health.
`disturb` stands where faulty silicon would: it may change a result in place. It does nothing unless a fault was asked for.
"""

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from prunella.storage import Stamp, Store

Disturb = Callable[[Tensor], None]


class Check(StrEnum):
    """What is looked at on each node."""

    DEVICE_COUNT = "device_count"
    MATRIX_PRODUCT = "matrix_product"
    REDUCTION = "reduction"
    BIT_IDENTITY = "bit_identity"
    MEMORY_PATTERNS = "memory_patterns"
    FREE_DISK = "free_disk"
    OBJECT_STORE = "object_store"
    CLOCK_SKEW = "clock_skew"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One value. None: it could not be taken, `detail` says why."""

    check: Check
    value: float | None
    duration_ms: float
    detail: str = ""


def undisturbed(result: Tensor) -> None:
    """Healthy silicon: a result is what it is."""


def flip_largest(result: Tensor) -> None:
    """Flip the highest mantissa bit of the element of largest magnitude, in place: the fault `bad-node`.

    It changes that element by a quarter to a half of itself, so the product is wrong by millions of ulps.
    """
    flat = result.view(-1)
    index = int(flat.abs().argmax())
    flat.view(torch.int32)[index] ^= 1 << 22


def measure(check: Check, take: Callable[[], float], *, detail: str = "") -> Measurement:
    """Take one value and its duration. What the device or the system refuses is a measurement without a value."""
    start_ns = time.perf_counter_ns()
    value: float | None
    try:
        value = take()
    except (RuntimeError, OSError) as error:
        value, detail = None, f"{detail} {type(error).__name__}: {error}".strip()
    return Measurement(check=check, value=value, duration_ms=(time.perf_counter_ns() - start_ns) / 1e6, detail=detail)


# ------------------------------------------------------------------------------------------------ devices


def node_devices(wanted: int) -> tuple[torch.device, ...]:
    """The accelerators to check, at most `wanted`; the CPU where there are none."""
    if not torch.cuda.is_available():
        return (torch.device("cpu"),)
    return tuple(torch.device("cuda", index) for index in range(min(wanted, torch.cuda.device_count())))


def device_count(wanted: int) -> float:
    """Devices the node brings. On a CPU node a device is a process: `wanted` of them share the CPUs, if there is one."""
    if torch.cuda.is_available():
        return float(torch.cuda.device_count())
    return float(wanted if os.sched_getaffinity(0) else 0)


# ------------------------------------------------------------------------------------------------ arithmetic


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def error_ulps(result: Tensor, reference: Tensor) -> float:
    """Largest error of a float32 `result` against a float64 `reference` of the same shape.

    Returns:
        the error in units in the last place of the largest magnitude in `reference`; NaN if the result holds one.
    """
    magnitude = float(reference.abs().max())
    ulp = 2.0 ** (math.floor(math.log2(magnitude)) - 23)
    return float((result.double().cpu() - reference).abs().max()) / ulp


def product_error_ulps(size: int, device: torch.device, *, seed: int = 0, disturb: Disturb = undisturbed) -> float:
    """Error of the product of two float32 matrices of shape (size, size), in ulps."""
    left_NN, right_NN = _random((size, size), seed), _random((size, size), seed + 1)
    return error_ulps(_product(left_NN, right_NN, device, disturb), left_NN.double() @ right_NN.double())


def _product(left_NN: Tensor, right_NN: Tensor, device: torch.device, disturb: Disturb) -> Tensor:
    result_NN = left_NN.to(device) @ right_NN.to(device)
    disturb(result_NN)
    return result_NN


def reduction_error_ulps(size: int, device: torch.device, *, seed: int = 2) -> float:
    """Error of the sum of E = size x size float32 values in [0, 1), in ulps of the sum."""
    values_E = torch.rand((size * size,), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return error_ulps(values_E.to(device).sum(), values_E.double().sum())


def differing_elements(size: int, device: torch.device, *, seed: int = 4, disturb: Disturb = undisturbed) -> float:
    """Elements whose bits differ between two runs of the same product and of the same row sums."""
    left_NN, right_NN = _random((size, size), seed), _random((size, size), seed + 1)
    first_NN = _product(left_NN, right_NN, device, disturb)
    second_NN = _product(left_NN, right_NN, device, disturb)
    pairs = ((first_NN, second_NN), (first_NN.sum(dim=1), first_NN.sum(dim=1)))
    return float(sum(int((one.view(torch.int32) != two.view(torch.int32)).sum()) for one, two in pairs))


# ------------------------------------------------------------------------------------------------ memory, disk, store, clock

#: Solid and alternating bits, as 64-bit words: 0x00.., 0xff.., 0x55.., 0xaa...
_PATTERNS = (0, -1, 0x5555555555555555, -0x5555555555555556)


def wrong_words(size_mib: int, device: torch.device, *, disturb: Disturb = undisturbed) -> float:
    """64-bit words that do not read back as written: four solid patterns, then each word its own address."""
    words = size_mib * 2**20 // 8
    buffer_W = torch.empty(words, dtype=torch.int64, device=device)
    address_W = torch.arange(words, dtype=torch.int64, device=device)
    wrong = 0
    for pattern in _PATTERNS:
        buffer_W.fill_(pattern)
        disturb(buffer_W)
        wrong += int((buffer_W != pattern).sum())
    buffer_W.copy_(address_W)
    disturb(buffer_W)
    return float(wrong + int((buffer_W != address_W).sum()))


def free_disk_mib(folder: Path) -> float:
    """Free space on the disk of `folder`, in MiB."""
    return shutil.disk_usage(folder).free / 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreProbe:
    """A small object written and read back, and how far the store's clock lies outside the time it was written in."""

    wrong_bytes: int
    skew_ms: float


#: Size of the object written to prove the store answers. Own choice 2026-11: one page of most file systems.
_PROBE_BYTES = 4096


def probe_store(store: Store, key: str) -> StoreProbe:
    """Write random bytes at `key`, read them back, compare the store's time stamp with this node's clock, and clean up.

    Raises:
        StorageUnavailable, StorageFull: the store does not serve this node. That is the store's incident, not the node's
            verdict: it is raised, so that an outage never cordons a fleet.
    """
    content = os.urandom(_PROBE_BYTES)
    before_ns = time.time_ns()
    store.put_new(key, content)
    after_ns = time.time_ns()
    found = store.get(key)
    skew_ms = outside_ms(store.stamp(key), before_ns, after_ns)
    store.delete(key)
    wrong = sum(one != two for one, two in zip(content, found, strict=False)) + abs(len(content) - len(found))
    return StoreProbe(wrong_bytes=wrong, skew_ms=skew_ms)


def outside_ms(stamp: Stamp, before_ns: int, after_ns: int) -> float:
    """Distance of a time stamp from the interval it belongs in, beyond what its grain explains, in ms; 0 inside."""
    outside_ns = max(before_ns - stamp.at_ns, stamp.at_ns - after_ns)
    return max(outside_ns - stamp.grain_ns, 0) / 1e6
