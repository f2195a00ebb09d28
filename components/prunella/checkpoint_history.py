"""Which checkpoints an experiment has, what is known of each, and which of them may go. Needs no torch.

Everything is a fold over the ledger's dense keys; there is no `latest` file that could lie. Retention never touches the
newest verified checkpoint nor the best, and never a manifest, a verdict or a mark: those are evidence. What was on its way to
the store when its writer died goes once that writer's attempt has lost its token.
"""

import functools
import logging
import math
import re
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from prunella.errors import Fenced, KeyExists, PrunellaError
from prunella.ledger import Ledger
from prunella.records import (
    CheckpointManifest,
    CheckpointMark,
    CheckpointRef,
    EvaluationRecord,
    Stage,
    ValidationRecord,
    Verdict,
)

logger = logging.getLogger(__name__)

#: Objects of a checkpoint that stay for ever.
_EVIDENCE = ("manifest.json", "verdict.json", "promoted.json", "revoked.json", "pruned.json")


class CheckpointState(StrEnum):
    """What is known of a checkpoint. `pruned` and `revoked` win over the verdict."""

    CANDIDATE = "candidate"
    VERIFIED = "verified"
    REJECTED = "rejected"
    REVOKED = "revoked"
    PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointStatus:
    """One checkpoint and its standing. `verdict` is None while nobody judged it, `digest` where it could not be read."""

    manifest: CheckpointManifest
    ref: CheckpointRef
    state: CheckpointState
    is_promoted: bool
    verdict: Verdict | None
    digest: str | None


def list_checkpoints(ledger: Ledger) -> list[CheckpointStatus]:
    """Every committed checkpoint of the experiment, by segment, step and attempt: the last is the furthest on.

    That is the order in which an attempt that opens looks for its resume point, from the end.
    """
    found: list[CheckpointManifest] = []
    segment = 0
    while ledger.runs(segment) or ledger.attempts(segment):
        for attempt in ledger.attempts(segment):
            found += ledger.candidates(segment, attempt.attempt)
        segment += 1
    found.sort(key=lambda manifest: (manifest.segment, manifest.step, manifest.attempt))
    return [_status(ledger, manifest) for manifest in found]


def newest_verified(ledger: Ledger) -> CheckpointStatus | None:
    """The furthest checkpoint that is verified and was neither revoked nor pruned; None if there is none."""
    verified = [status for status in list_checkpoints(ledger) if status.state is CheckpointState.VERIFIED]
    return verified[-1] if verified else None


def recent_checkpoints(ledger: Ledger, segment: int) -> Iterator[CheckpointManifest]:
    """Committed checkpoints up to a segment that are still there, newest step first."""
    for number in range(segment, -1, -1):
        found = [m for attempt in ledger.attempts(number) for m in ledger.candidates(number, attempt.attempt)]
        for manifest in sorted(found, key=lambda m: (m.step, m.attempt), reverse=True):
            if not any(ledger.mark(manifest.name, mark) for mark in ("revoked", "pruned")):
                yield manifest


def verified_before(ledger: Ledger, segment: int, step: int) -> CheckpointRef | None:
    """The newest verified checkpoint older than a step."""
    for manifest in recent_checkpoints(ledger, segment):
        if manifest.step < step and is_verified(ledger, manifest.name):
            return ledger.ref(manifest)
    return None


def is_verified(ledger: Ledger, name: str) -> bool:
    """Whether validation accepted the checkpoint."""
    verdict = ledger.validation(name)
    return verdict is not None and verdict.verdict is Verdict.ACCEPTED


def is_rejected(ledger: Ledger, name: str) -> bool:
    """Whether validation rejected it."""
    verdict = ledger.validation(name)
    return verdict is not None and verdict.verdict is not Verdict.ACCEPTED


def best_evaluated(evaluations: Iterable[EvaluationRecord], *, among: Container[str]) -> str | None:
    """The checkpoint with the lowest held-out loss that did not fall behind, the earlier of two equals.

    Args:
        evaluations: oldest first.
        among: names of the checkpoints that count: verified ones whose files are there.
    """
    judged = [
        found
        for found in evaluations
        if found.checkpoint.name in among and not found.is_regression and math.isfinite(found.heldout_loss_nats)
    ]
    best = min(judged, key=lambda found: found.heldout_loss_nats, default=None)
    return best.checkpoint.name if best is not None else None


def _status(ledger: Ledger, manifest: CheckpointManifest) -> CheckpointStatus:
    verdict = ledger.validation(manifest.name)
    return CheckpointStatus(
        manifest=manifest,
        ref=ledger.ref(manifest),
        state=_state(ledger, manifest.name, verdict),
        is_promoted=ledger.mark(manifest.name, "promoted") is not None,
        verdict=None if verdict is None else verdict.verdict,
        digest=None if verdict is None else verdict.digest,
    )


def _state(ledger: Ledger, name: str, verdict: ValidationRecord | None) -> CheckpointState:
    if ledger.mark(name, "pruned") is not None:
        return CheckpointState.PRUNED
    if ledger.mark(name, "revoked") is not None:
        return CheckpointState.REVOKED
    if verdict is None:
        return CheckpointState.CANDIDATE
    return CheckpointState.VERIFIED if verdict.verdict is Verdict.ACCEPTED else CheckpointState.REJECTED


# ------------------------------------------------------------------------------------------------ retention


def prune(ledger: Ledger, *, keep_last: int, keep_every: int, is_dry_run: bool) -> list[CheckpointStatus]:
    """Delete the data of checkpoints that nobody needs; returns those it released (or would release).

    Kept: the last `keep_last` verified and whatever lies between them (a candidate to roll back to, a rejected one to look
    at), every `keep_every`-th verified one for ever (0: none), the newest promoted one, the best (`best_evaluated`), and
    everything newer. The mark is written before anything is deleted, so that a prune that was killed half-way is finished by
    the next.
    """
    checkpoints = list_checkpoints(ledger)
    best = _best(ledger, checkpoints)
    released = _released(checkpoints, best, keep_last=max(keep_last, 1), keep_every=keep_every)
    if is_dry_run:
        return released
    for status in released:
        _mark_pruned(ledger, status)
    for status in checkpoints:
        if status in released or status.state is CheckpointState.PRUNED:
            _delete_data(ledger, status.manifest.name)
    clear_unfinished(ledger)
    return released


def _best(ledger: Ledger, checkpoints: list[CheckpointStatus]) -> str | None:
    verified = {status.manifest.name for status in checkpoints if status.state is CheckpointState.VERIFIED}
    segments = range(max((status.manifest.segment for status in checkpoints), default=-1) + 1)
    keys = (ledger.record_key(s, opened.attempt, Stage.EVALUATION) for s in segments for opened in ledger.attempts(s))
    found = (ledger.find_stage_record(EvaluationRecord, key) for key in keys)
    return best_evaluated((record for record in found if isinstance(record, EvaluationRecord)), among=verified)


def _released(
    checkpoints: list[CheckpointStatus], best: str | None, *, keep_last: int, keep_every: int
) -> list[CheckpointStatus]:
    verified = [status for status in checkpoints if status.state is CheckpointState.VERIFIED]
    if len(verified) < keep_last:
        return []
    promoted = [status for status in verified if status.is_promoted]
    kept = [*verified[-keep_last:], *promoted[-1:], *_kept_for_ever(checkpoints, keep_every)]
    names = {best, *(status.manifest.name for status in kept)}
    older = checkpoints[: checkpoints.index(verified[-keep_last:][0])]
    return [s for s in older if s.state is not CheckpointState.PRUNED and s.manifest.name not in names]


def _kept_for_ever(checkpoints: list[CheckpointStatus], keep_every: int) -> list[CheckpointStatus]:
    """Every M-th of all that were ever verified, counting pruned ones too, so that pruning does not move the count."""
    accepted = [status for status in checkpoints if status.verdict is Verdict.ACCEPTED]
    every = accepted[keep_every - 1 :: keep_every] if keep_every else []
    return [status for status in every if status.state is CheckpointState.VERIFIED]


def _mark_pruned(ledger: Ledger, status: CheckpointStatus) -> None:
    mark = CheckpointMark(checkpoint=status.manifest.name, reason=f"retention; was {status.state}", at_ns=time.time_ns())
    try:
        ledger.put(ledger.mark_key(status.manifest.name, "pruned"), mark)
    except KeyExists:
        return  # another prune marked it between the fold and here


def _delete_data(ledger: Ledger, name: str) -> None:
    prefix = ledger.checkpoint_prefix(name)
    for leaf in ledger.store.list(prefix):
        if leaf not in _EVIDENCE:
            ledger.store.delete(f"{prefix}/{leaf}")


def clear_unfinished(ledger: Ledger) -> None:
    """Forget what attempts that lost their token had on its way to the store: uploads in parts, temporary files.

    Whoever holds the token may be writing, so that what is his stays, also when he is dead: the next attempt clears it. Nothing
    depends on this, so that a store that does not list such things fails nobody.
    """
    may_write = functools.cache(lambda segment, attempt: _may_write(ledger, segment, attempt))

    def is_dead(key: str) -> bool:
        of_attempt = re.match(rf"{re.escape(ledger.checkpoints_prefix)}/(\d+)-(\d+)-\d+/", key)
        return of_attempt is not None and not may_write(int(of_attempt[1]), int(of_attempt[2]))

    try:
        cleared = ledger.store.clear_unfinished(ledger.checkpoints_prefix, is_dead)
    except PrunellaError as error:
        logger.warning("unfinished_uploads_left prefix=%s error=%s", ledger.checkpoints_prefix, error)
        return
    for key in cleared:
        logger.warning("unfinished_upload_cleared key=%s", key)


def _may_write(ledger: Ledger, segment: int, attempt: int) -> bool:
    """Whether an attempt may write: it holds its token, or nobody knows of it."""
    opened = next((found for found in ledger.attempts(segment) if found.attempt == attempt), None)
    if opened is None:
        return True
    try:
        ledger.check_token(segment=segment, attempt=attempt, run_index=opened.run_index)
    except Fenced:
        return False
    return True
