"""From what a rank caught to a classified failure. The type decides; text is read only where torch has no type for it.

A rank whose collective failed because its peer is gone says so: it is a witness, not a culprit.
"""

import traceback

from prunella.errors import Cause, DataCorrupt, NonFinite, PrunellaError
from prunella.records import Failure, Json

#: What gloo and NCCL say when the other side is gone. Source: torch 2.13, messages seen 2026-11 when a rank was killed.
_PEER_LOSS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "timed out waiting",
    "remote process exited",
    "ncclremoteerror",
    "gloo connectfullmesh failed",
    "failed to recv",
)
_MEMORY = ("can't allocate memory", "out of memory")


class NonFiniteStep(NonFinite):
    """A step met NaN or infinity. `rank` is the one that saw it alone; None when several did, or only the norm shows it."""

    def __init__(self, message: str, *, step: int, rank: int | None) -> None:
        super().__init__(message)
        self.step = step
        self.rank = rank


def classify(error: BaseException, *, rank: int, node: str, step: int) -> Failure:
    """What a caught exception says of the attempt. The type decides; the text only where torch has no type for it."""
    evidence: dict[str, Json] = {"error": type(error).__name__}
    if isinstance(error, NonFiniteStep):
        # Every rank raises this one together: the culprit is the rank it names, which may be none.
        return Failure(cause=error.cause, message=str(error), rank=error.rank, step=error.step, evidence=evidence)
    if isinstance(error, DataCorrupt) and error.shard is not None:
        evidence["shard"] = error.shard
    cause = _cause(error)
    if cause is Cause.UNKNOWN:
        evidence["traceback"] = "".join(traceback.format_exception(error))[-4000:]
    message = str(error) or type(error).__name__
    return Failure(cause=cause, message=message, node=node, rank=rank, step=step, evidence=evidence)


def _cause(error: BaseException) -> Cause:
    if isinstance(error, PrunellaError):
        return error.cause
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _says(error, _MEMORY)
    return Cause.OUT_OF_MEMORY if is_memory else Cause.UNKNOWN


def is_peer_loss(error: BaseException) -> bool:
    """Whether a collective failed because the process on its other side is gone."""
    is_classified = isinstance(error, PrunellaError) and error.cause is not Cause.UNKNOWN
    return not is_classified and _says(error, _PEER_LOSS)


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError | PrunellaError) and any(phrase in text for phrase in phrases)
