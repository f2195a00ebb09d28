"""Faults a user asks for, to see the loop heal them. Nothing here runs unless one was asked for.

A fault is written `kind:name=value,...`. Its firing is recorded with `put_new` before it acts, so each acts once an
experiment, whatever crashes in between. The acting is real: a SIGKILL, a SIGSTOP, a NaN in a gradient, a flipped byte.
"""

import hashlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from prunella.codec import suggest
from prunella.config import Config
from prunella.errors import ConfigError, KeyExists, KeyMissing, StorageUnavailable
from prunella.records import FaultFired, NodeRef, from_bytes, to_bytes
from prunella.storage import Store, WrappedStore

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: kind -> (required parameters, optional parameters, what it does)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "kill": (("rank", "step"), (), "SIGKILL the rank before the optimizer step"),
    "hang": (("rank", "step"), (), "SIGSTOP the rank before the optimizer step"),
    "nan": (("rank", "step"), (), "poison one gradient of the rank in the optimizer step"),
    "bad-node": (("node", "segment"), (), "the node's matrix products are wrong from the segment's gate on, until repaired"),
    "corrupt-checkpoint": (("step",), (), "flip one byte of the candidate of the step, after its commit"),
    "truncate-shard": (("shard",), (), "cut a token shard of the training split in half, after its commit"),
    "storage-down": (("seconds",), ("step",), "the object store answers nothing for that long, from before the step"),
}
_TEXT_PARAMETERS = ("node",)
_SIGNALS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault, parsed. Parameters that do not apply are None."""

    spec: str
    kind: str
    rank: int | None = None
    step: int | None = None
    segment: int | None = None
    shard: int | None = None
    seconds: float | None = None
    node: str | None = None

    @property
    def key(self) -> str:
        """Name of its firing record, under the experiment."""
        return f"faults/{self.kind}-{hashlib.sha256(self.spec.encode()).hexdigest()[:12]}.json"


def parse(spec: str) -> Fault:
    """Read a fault specification.

    Raises:
        ConfigError: unknown kind, unknown or missing parameter, or a value that is no number.
    """
    kind, _, text = spec.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"--fault {spec}: unknown fault {kind!r}{suggest(kind, list(KINDS))}; see `prunella fault list`")
    required, optional, _ = KINDS[kind]
    values: dict[str, float | int | str] = {}
    for pair in filter(None, text.split(",")):
        name, separator, value = pair.partition("=")
        if not separator or name not in required + optional:
            raise ConfigError(f"--fault {spec}: expected {_form(kind)}, found {pair!r}")
        values[name] = _parameter(spec, name, value)
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"--fault {spec}: parameter {missing[0]!r} is missing; expected {_form(kind)}")
    return Fault(spec=spec, kind=kind, **values)  # type: ignore[arg-type]


def _form(kind: str) -> str:
    required, optional, _ = KINDS[kind]
    return f"{kind}:" + ",".join([f"{name}=..." for name in required] + [f"[{name}=...]" for name in optional])


def _parameter(spec: str, name: str, value: str) -> float | int | str:
    if name in _TEXT_PARAMETERS:
        return value
    try:
        number = float(value) if name == "seconds" else int(value)
    except ValueError as error:
        raise ConfigError(f"--fault {spec}: {name} must be a number, found {value!r}") from error
    if not 0 <= number < math.inf:
        raise ConfigError(f"--fault {spec}: {name} must be finite and not negative, found {value!r}")
    return number


def check_possible(fault: Fault, config: Config, fleet: tuple[NodeRef, ...]) -> None:
    """Refuse a fault that can never fire in this experiment.

    Raises:
        ConfigError: its rank, step, segment or node does not exist, or its step is no candidate's.
    """
    world_size = sum(sorted((node.devices for node in fleet), reverse=True)[: config.nodes])
    names = [node.name for node in fleet]
    if fault.rank is not None and fault.rank >= world_size:
        raise ConfigError(f"--fault {fault.spec}: there is no rank {fault.rank}; ranks are 0 to {world_size - 1}")
    if fault.step is not None and not 1 <= fault.step <= config.total_steps:
        raise ConfigError(f"--fault {fault.spec}: there is no step {fault.step}; steps are 1 to {config.total_steps}")
    if fault.segment is not None and fault.segment >= config.segments:
        raise ConfigError(f"--fault {fault.spec}: there is no segment {fault.segment}; segments are 0 to {config.segments - 1}")
    if fault.node is not None and fault.node not in names:
        raise ConfigError(f"--fault {fault.spec}: there is no node {fault.node!r}; the fleet has {', '.join(names)}")
    if fault.kind == "corrupt-checkpoint" and fault.step is not None and not _is_candidate(fault.step, config):
        raise ConfigError(
            f"--fault {fault.spec}: no candidate is written at step {fault.step}; they are written every "
            f"{config.checkpoint.interval_steps} steps and at the end of each segment of {config.steps_per_segment}"
        )


def _is_candidate(step: int, config: Config) -> bool:
    return step % config.checkpoint.interval_steps == 0 or step % config.steps_per_segment == 0


class FaultSwitch:
    """The faults of one experiment, and whether each has fired. Reads and writes past the simulated outage."""

    def __init__(self, store: Store, experiment: str, faults: tuple[Fault, ...], *, segment: int = 0, attempt: int = 0) -> None:
        self._store = store
        self._prefix = f"experiments/{experiment}"
        self._faults = faults
        self._segment = segment
        self._attempt = attempt

    def of_kind(self, kind: str) -> tuple[Fault, ...]:
        """The requested faults of one kind."""
        return tuple(fault for fault in self._faults if fault.kind == kind)

    def fired(self, fault: Fault) -> FaultFired | None:
        """Its firing record, if it has fired."""
        key = f"{self._prefix}/{fault.key}"
        try:
            return from_bytes(FaultFired, self._store.get(key), key)
        except KeyMissing:
            return None

    def fire(self, fault: Fault, *, step: int | None = None) -> bool:
        """Record that the fault acts now; False if it did before, and must not again."""
        record = FaultFired(spec=fault.spec, at_ns=time.time_ns(), segment=self._segment, attempt=self._attempt, step=step)
        try:
            self._store.put_new(f"{self._prefix}/{fault.key}", to_bytes(record))
        except KeyExists:
            return False
        logger.warning("fault_fired spec=%s segment=%s attempt=%s step=%s", fault.spec, self._segment, self._attempt, step)
        return True

    def before_step(self, *, rank: int, step: int) -> bool:
        """Act out what is asked for this rank before this step; True if the step's gradient is to be poisoned.

        One fault at a time: of two for the same rank and step, the second acts when the step is executed again.
        """
        for fault in self._faults:
            if not self._is_meant(fault, rank, step) or not self.fire(fault, step=step):
                continue
            if fault.kind == "nan":
                return True
            if fault.kind in _SIGNALS:
                os.kill(os.getpid(), _SIGNALS[fault.kind])
                return False
        return False

    @staticmethod
    def _is_meant(fault: Fault, rank: int, step: int) -> bool:
        if fault.kind == "storage-down":
            return rank == 0 and fault.step in (None, step)
        return fault.kind in ("nan", *_SIGNALS) and (fault.rank, fault.step) == (rank, step)


def flip_byte(store: Store, key: str) -> None:
    """Flip one bit in the middle of an object, behind everybody's back."""
    content = bytearray(store.get(key))
    content[len(content) // 2] ^= 0x10
    _replace(store, key, bytes(content))


def truncate(store: Store, key: str) -> None:
    """Cut an object to half its size, behind everybody's back."""
    content = store.get(key)
    _replace(store, key, content[: len(content) // 2])


def _replace(store: Store, key: str, content: bytes) -> None:
    store.delete(key)
    store.put_new(key, content)


class OutageStore(WrappedStore):
    """A store that answers nothing while a fired `storage-down` lasts. Only ever built when that fault was asked for."""

    def __init__(self, inner: Store, switch: FaultSwitch) -> None:
        super().__init__(inner)
        self._switch = switch

    def _call(self, key: str, call: Callable[[], T]) -> T:
        for fault in self._switch.of_kind("storage-down"):
            firing = self._switch.fired(fault)
            if firing is not None and time.time_ns() < firing.at_ns + (fault.seconds or 0.0) * 1e9:
                raise StorageUnavailable(f"{self.root}: object {key!r} is out of reach (fault {fault.spec})")
        return call()
