"""With what a checkpoint is compared, and a person's word about it.

An evaluation that found no regression promotes its checkpoint (`closing.promote`), and the segments after are compared with
the newest one that was promoted. A person may promote one that fell behind, because they know why and accept it: else every
segment after it would be told that it fell behind too, and wait. Nothing is trained or started by that, and the evaluation
stays as it was written.
"""

import contextlib
import logging
import time
from collections.abc import Iterator

from prunella.errors import ConfigError, KeyExists
from prunella.ledger import Ledger
from prunella.records import CheckpointMark, CheckpointRef, EvaluationRecord, Stage

logger = logging.getLogger(__name__)

PROMOTED = "promoted"


def baseline(ledger: Ledger, segment: int) -> str | None:
    """Key of the evaluation of the newest promoted checkpoint before this segment."""
    found = _accepted(ledger, before=segment)
    return next((key for checkpoint, key in found if ledger.mark(checkpoint.name, PROMOTED) is not None), None)


def promote_by_hand(ledger: Ledger, *, step: int | None, reason: str, who: str | None = None) -> str:
    """Mark a checkpoint as promoted whatever its evaluation said; returns its name. One that is promoted stays as it is.

    Args:
        step: optimizer step with which an accepted segment ended; the last such by default.
        reason: why it is accepted; kept beside the checkpoint.
        who: who says so, where that is known.

    Raises:
        ConfigError: there is no reason, no such checkpoint, none that is still verified, or it was not evaluated.
    """
    if not reason.strip():
        raise ConfigError("reason: expected why the checkpoint is accepted all the same, found nothing; it is kept beside it")
    checkpoint, evaluation = _chosen(ledger, step)
    _check(ledger, checkpoint, evaluation)
    told = f"{who}: {reason}" if who else reason
    with contextlib.suppress(KeyExists):
        ledger.put(
            ledger.mark_key(checkpoint.name, PROMOTED),
            CheckpointMark(checkpoint=checkpoint.name, reason=told, at_ns=time.time_ns()),
        )
    logger.warning("checkpoint_promoted_by_hand name=%s step=%s reason=%s", checkpoint.name, checkpoint.step, told)
    return checkpoint.name


def _accepted(ledger: Ledger, *, before: int) -> Iterator[tuple[CheckpointRef, str]]:
    """The checkpoint of each accepted segment before this one, and the key of its evaluation; newest first."""
    for segment in range(before - 1, -1, -1):
        close = ledger.accepted(segment)
        if close is not None and close.checkpoint is not None and close.attempt is not None:
            yield close.checkpoint, ledger.record_key(segment, close.attempt, Stage.EVALUATION.value)


def _chosen(ledger: Ledger, step: int | None) -> tuple[CheckpointRef, str]:
    known = list(_accepted(ledger, before=ledger.config().segments))
    found = [(checkpoint, key) for checkpoint, key in known if step in (None, checkpoint.step)]
    if not found:
        steps = ", ".join(str(checkpoint.step) for checkpoint, _ in reversed(known)) or "none yet"
        wanted = "an accepted segment" if step is None else f"an accepted segment that ended with step {step}"
        raise ConfigError(f"experiment {ledger.name!r}: expected {wanted}, found ends of accepted segments: {steps}; name one")
    return found[0]


def _check(ledger: Ledger, checkpoint: CheckpointRef, evaluation: str) -> None:
    """Return quietly when the segments after can be compared with it, and resumed from it."""
    if not isinstance(ledger.find_stage_record(EvaluationRecord, evaluation), EvaluationRecord):
        raise ConfigError(f"checkpoint {checkpoint.name}: expected its evaluation, found none; nothing can be compared with it")
    for mark in ("revoked", "pruned"):
        if (found := ledger.mark(checkpoint.name, mark)) is not None:
            raise ConfigError(
                f"checkpoint {checkpoint.name}: expected one that is verified, found that it was {mark} ({found.reason}); "
                "`prunella checkpoint list` shows what is there"
            )
