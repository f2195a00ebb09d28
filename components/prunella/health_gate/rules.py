"""From a measurement to a verdict. Pure: no clock, no device, no store.

A value inside its bounds is healthy, outside (NaN included) unhealthy, and a value that could not be taken is unknown.
One unhealthy check makes the node unhealthy; one unknown makes it unknown: unknown is never healthy.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from prunella.config import GateConfig
from prunella.health_gate.checks import Check, Measurement
from prunella.records import CheckResult, Health


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a healthy value looks like, both ends included."""

    unit: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def reference(self) -> str:
        """The bounds in words."""
        if self.low == self.high:
            return f"exactly {self.low:g} {self.unit}"
        return f"at least {self.low:g} {self.unit}" if math.isinf(self.high) else f"at most {self.high:g} {self.unit}"


def bounds(gate: GateConfig, *, devices: int) -> dict[Check, Bounds]:
    """The bounds of every check for a node that should bring `devices` devices."""
    return {
        Check.DEVICE_COUNT: Bounds(unit="devices", low=devices),
        Check.MATRIX_PRODUCT: Bounds(unit="ulps", high=gate.max_error_ulps),
        Check.REDUCTION: Bounds(unit="ulps", high=gate.max_error_ulps),
        Check.BIT_IDENTITY: Bounds(unit="elements", low=0, high=0),
        Check.MEMORY_PATTERNS: Bounds(unit="words", low=0, high=0),
        Check.FREE_DISK: Bounds(unit="MiB", low=gate.min_free_disk_mib),
        Check.OBJECT_STORE: Bounds(unit="bytes", low=0, high=0),
        Check.CLOCK_SKEW: Bounds(unit="ms", high=gate.max_clock_skew_ms),
    }


def judge(measurement: Measurement, expected: Bounds, *, node: str) -> CheckResult:
    """One measurement against its bounds."""
    value = math.nan if measurement.value is None else measurement.value
    is_inside = expected.low <= value <= expected.high
    health = Health.HEALTHY if is_inside else Health.UNHEALTHY
    return CheckResult(
        name=measurement.check.value,
        node=node,
        health=Health.UNKNOWN if measurement.value is None else health,
        value=value,
        unit=expected.unit,
        reference=expected.reference,
        duration_ms=measurement.duration_ms,
        detail=measurement.detail,
    )


def worst(health: Iterable[Health]) -> Health:
    """What several checks say together; no check at all is unknown."""
    found = set(health)
    if Health.UNHEALTHY in found:
        return Health.UNHEALTHY
    return Health.HEALTHY if found == {Health.HEALTHY} else Health.UNKNOWN
