"""Give every nanosecond of an experiment exactly one name (FIELD 3), and compute ETTR from the names.

Records claim stretches of time; claims overlap and leave holes. A sweep over all claims gives each instant to the claim of
the innermost layer, so that the parts add up to the elapsed time exactly, as integers. It trusts that stamps of one
experiment come from comparable clocks (the gate checks their skew); a claim outside the experiment is cut off, and one that
ends before it starts is dropped. It reads no clock.

| layer | claimed by | part |
|---|---|---|
| step | a step record: data wait at its start, checkpoint stall at its end, the rest in between | productive or lost_progress |
| span | a stage's or a resume point's own spans | as the span says |
| stage | from start to end of a stage that has one purpose | gate, validation, evaluation, data_preparation |
| episode | decisions; from one until the attempt it asks for opens; an incident inside a training window | decision, ... |
| window | from the gate to the end of training, where training itself did not say more | unknown |
| run | a DAG run; between two, first what was waited for, then what the orchestrator took | orchestration, paused |

A step that was begun when the fault struck is lost progress; waiting for a schedule or a person is paused. Where one command
goes on by itself, or the schedule is `continuous`, nobody is waited for: what lies between two runs is orchestration there,
inside ETTR's denominator. A run that never closed was either interrupted, which shows by its training (it was asked to stop,
saved, and nothing of the run came after): then it is paused until the next run. Or it died: then that is orchestration.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from prunella.records import (
    Action,
    Outcome,
    Part,
    SegmentClosed,
    SegmentOpened,
    Stage,
    StageRecord,
    StopReason,
    TrainRecord,
    Verdict,
)
from prunella.tracking.history import Attempt, History, Step


class Layer(IntEnum):
    """Who wins where claims overlap: the lower number."""

    STEP = 0
    SPAN = 1
    STAGE = 2
    EPISODE = 3
    WINDOW = 4
    RUN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A stretch of time, half open, that a record gives a name to."""

    start_ns: int
    end_ns: int
    part: Part
    layer: Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A stretch of the settled timeline. Neighbours differ in part; together they cover the elapsed time."""

    start_ns: int
    end_ns: int
    part: Part


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeAccount:
    """Where the time went. `parts_ns` has every part and adds up to `elapsed_ns`."""

    timeline: tuple[Stretch, ...]
    elapsed_ns: int
    parts_ns: dict[Part, int]

    @property
    def ettr(self) -> float:
        """Productive part of the time that was not paused, in [0, 1]; 0 before any time passed."""
        counted_ns = self.elapsed_ns - self.parts_ns[Part.PAUSED]
        return self.parts_ns[Part.PRODUCTIVE] / counted_ns if counted_ns else 0.0


#: Inside one layer, the part that comes first here wins: useful work over waste, the specific over the general.
_WITHIN_LAYER = {part: position for position, part in enumerate(Part)}
_Key = tuple[int, int]


def settle(claims: Iterable[Claim], *, start_ns: int, end_ns: int) -> tuple[Stretch, ...]:
    """The timeline from `start_ns` to `end_ns`; what nobody claimed is `unknown`."""
    events = _events(claims, start_ns, end_ns)
    bounds = sorted({start_ns, end_ns, *events})
    active: dict[_Key, int] = {}
    timeline: list[Stretch] = []
    for left, right in pairwise(bounds):
        for key, change in events.get(left, ()):
            active[key] = active.get(key, 0) + change
        _append(timeline, left, right, _winner(active))
    return tuple(timeline)


def _events(claims: Iterable[Claim], start_ns: int, end_ns: int) -> dict[int, list[tuple[_Key, int]]]:
    events: dict[int, list[tuple[_Key, int]]] = {}
    for claim in claims:
        left, right = max(claim.start_ns, start_ns), min(claim.end_ns, end_ns)
        if left < right:
            key = (int(claim.layer), _WITHIN_LAYER[claim.part])
            events.setdefault(left, []).append((key, 1))
            events.setdefault(right, []).append((key, -1))
    return events


def _winner(active: dict[_Key, int]) -> Part:
    key = min((key for key, count in active.items() if count), default=None)
    return Part.UNKNOWN if key is None else list(Part)[key[1]]


def _append(timeline: list[Stretch], start_ns: int, end_ns: int, part: Part) -> None:
    if timeline and timeline[-1].part is part:
        start_ns = timeline.pop().start_ns
    timeline.append(Stretch(start_ns=start_ns, end_ns=end_ns, part=part))


def account(history: History, *, now_ns: int) -> TimeAccount:
    """Where the time from the opening of the experiment went, until its last close, or until now while a run is open."""
    start_ns = history.experiment.opened_ns
    end_ns = max(start_ns, _end_ns(history, now_ns))
    timeline = settle(claims(history, end_ns), start_ns=start_ns, end_ns=end_ns)
    parts_ns = dict.fromkeys(Part, 0)
    for stretch in timeline:
        parts_ns[stretch.part] += stretch.end_ns - stretch.start_ns
    return TimeAccount(timeline=timeline, elapsed_ns=end_ns - start_ns, parts_ns=parts_ns)


def pauses(history: History) -> tuple[Stretch, ...]:
    """When the experiment was paused, oldest first, as far as it has trained."""
    start_ns = history.experiment.opened_ns
    end_ns = max((step.record.end_ns for step in history.steps), default=start_ns)
    timeline = settle(claims(history, end_ns), start_ns=start_ns, end_ns=end_ns)
    return tuple(stretch for stretch in timeline if stretch.part is Part.PAUSED)


def _end_ns(history: History, now_ns: int) -> int:
    closes = [close for _, close in history.runs if close is not None]
    is_open = len(closes) < len(history.runs) and history.runs[-1][1] is None
    return now_ns if is_open or not closes else max(close.closed_ns for close in closes)


# ------------------------------------------------------------------------------------------------ claims


def claims(history: History, end_ns: int) -> Iterator[Claim]:
    """Every claim that the records make on the time up to `end_ns`."""
    yield from _run_claims(history, end_ns)
    preparations = [record for segment in history.segments for record in segment.preparations]
    for preparation in preparations if history.dataset is None else (history.dataset, *preparations):
        yield from _stage_claims(preparation)
    attempts = history.attempts
    for attempt, following in zip(attempts, (*attempts[1:], None), strict=False):
        limit_ns = _last_moment(history, attempt, following, end_ns)
        for step in attempt.steps:
            yield from _step_claims(step)
        for record in attempt.stage_records:
            yield from _stage_claims(record)
        for span in attempt.resume.spans if attempt.resume is not None else ():
            yield Claim(start_ns=span.start_ns, end_ns=span.end_ns, part=span.part, layer=Layer.SPAN)
        yield from _training_claims(attempt, limit_ns)
        yield from _decision_claims(attempt, following)


def _step_claims(step: Step) -> Iterator[Claim]:
    record = step.record
    work_ns, stall_ns = record.start_ns + record.data_ns, record.end_ns - record.checkpoint_ns
    part = Part.PRODUCTIVE if step.is_kept else Part.LOST_PROGRESS
    yield Claim(start_ns=record.start_ns, end_ns=work_ns, part=Part.DATA_WAIT, layer=Layer.STEP)
    yield Claim(start_ns=work_ns, end_ns=stall_ns, part=part, layer=Layer.STEP)
    yield Claim(start_ns=stall_ns, end_ns=record.end_ns, part=Part.CHECKPOINT_STALL, layer=Layer.STEP)


#: Stages with one purpose: all of their time bears one name where their spans do not say more.
_STAGE_PART = {
    Stage.DATA_PREP: Part.DATA_PREPARATION,
    Stage.GATE_NODE: Part.GATE,
    Stage.GATE_FABRIC: Part.GATE,
    Stage.CHECKPOINT_VALIDATION: Part.VALIDATION,
    Stage.EVALUATION: Part.EVALUATION,
}


def _stage_claims(record: StageRecord) -> Iterator[Claim]:
    for span in record.spans:
        yield Claim(start_ns=span.start_ns, end_ns=span.end_ns, part=span.part, layer=Layer.SPAN)
    part = _STAGE_PART.get(record.stage)
    if part is not None:
        yield Claim(start_ns=record.started_ns, end_ns=record.ended_ns, part=part, layer=Layer.STAGE)


def _training_claims(attempt: Attempt, limit_ns: int) -> Iterator[Claim]:
    """The window in which training ran or should have run, and what incidents say of it."""
    window = _training_window(attempt, limit_ns)
    if window is None:
        return
    start_ns, end_ns = window
    yield Claim(start_ns=start_ns, end_ns=end_ns, part=Part.UNKNOWN, layer=Layer.WINDOW)
    last_end_ns = max((step.record.end_ns for step in attempt.steps), default=None)
    for incident in attempt.decision.incidents if attempt.decision is not None else ():
        fault_ns, seen_ns = (min(max(at_ns, start_ns), end_ns) for at_ns in (incident.fault_ns, incident.detected_ns))
        yield Claim(start_ns=fault_ns, end_ns=seen_ns, part=Part.DETECTION, layer=Layer.EPISODE)
    if isinstance(attempt.training, TrainRecord) and attempt.training.fault_ns is not None and last_end_ns is not None:
        fault_ns = min(attempt.training.fault_ns, end_ns)
        yield Claim(start_ns=last_end_ns, end_ns=fault_ns, part=Part.LOST_PROGRESS, layer=Layer.EPISODE)


def _training_window(attempt: Attempt, limit_ns: int) -> tuple[int, int] | None:
    if attempt.training is not None:
        return attempt.training.started_ns, attempt.training.ended_ns
    gate = attempt.gate_fabric
    if gate is None or gate.verdict is not Verdict.ACCEPTED:
        return None
    return gate.ended_ns, max(gate.ended_ns, limit_ns)


def _last_moment(history: History, attempt: Attempt, following: Attempt | None, end_ns: int) -> int:
    """Until when an attempt without a training record may have been training: the next thing that is known."""
    known = [end_ns]
    if attempt.decision is not None:
        known.append(attempt.decision.started_ns)
    if following is not None:
        known.append(following.opened.opened_ns)
    known += [run.opened_ns for run, _ in history.runs if run.opened_ns > attempt.opened.opened_ns]
    known += [close.closed_ns for _, close in history.runs if close and close.closed_ns > attempt.opened.opened_ns]
    return min(known)


_TRIES_AGAIN = (Action.RETRY_SAME_NODES, Action.REPLACE_NODE, Action.ROLL_BACK, Action.ROLL_BACK_AND_SKIP)


def _decision_claims(attempt: Attempt, following: Attempt | None) -> Iterator[Claim]:
    decision = attempt.decision
    if decision is None:
        return
    yield Claim(start_ns=decision.started_ns, end_ns=decision.decided_ns, part=Part.DECISION, layer=Layer.EPISODE)
    is_same_run = following is not None and following.opened.run_id == attempt.opened.run_id
    if following is None or not is_same_run:
        return
    part = Part.ACQUISITION if decision.action in _TRIES_AGAIN else Part.PAUSED
    if decision.action in (*_TRIES_AGAIN, Action.ASK):
        yield Claim(start_ns=decision.decided_ns, end_ns=following.opened.opened_ns, part=part, layer=Layer.EPISODE)


def _run_claims(history: History, end_ns: int) -> Iterator[Claim]:
    """DAG runs and the gaps between them; a run that never closed ends, at the latest, where the next one opens."""
    runs = history.runs
    if runs:
        yield _run_claim(history.experiment.opened_ns, runs[0][0].opened_ns, Part.ORCHESTRATION)
    for index, (run, close) in enumerate(runs):
        following = runs[index + 1][0] if index + 1 < len(runs) else None
        next_ns = end_ns if following is None else following.opened_ns
        if close is None:
            ended_ns, wanted_ns = _left_ns(history, run, next_ns), next_ns
        else:
            ended_ns = close.closed_ns
            wanted_ns = ended_ns if following is None else _wanted_ns(history, close, following)
        yield _run_claim(run.opened_ns, ended_ns, Part.ORCHESTRATION)
        yield _run_claim(ended_ns, wanted_ns, Part.PAUSED)
        if following is not None:
            yield _run_claim(wanted_ns, next_ns, Part.ORCHESTRATION)


def _run_claim(start_ns: int, end_ns: int, part: Part) -> Claim:
    return Claim(start_ns=start_ns, end_ns=end_ns, part=part, layer=Layer.RUN)


def _left_ns(history: History, run: SegmentOpened, next_ns: int) -> int:
    """When a run without a close was interrupted; `next_ns` where it was not, or where that left no trace."""
    attempt = next((found for found in reversed(history.attempts) if _is_of(found, run)), None)
    training = attempt.training if attempt is not None else None
    if attempt is None or not isinstance(training, TrainRecord) or training.stopped_by is not StopReason.SIGNAL:
        return next_ns
    # The next run stops what it finds training, and judges it: neither is a deed of this one.
    has_gone_on = any(record.started_ns >= training.ended_ns for record in attempt.stage_records)
    is_judged = attempt.decision is not None and attempt.decision.started_ns < next_ns
    return next_ns if has_gone_on or is_judged else min(training.ended_ns, next_ns)


def _is_of(attempt: Attempt, run: SegmentOpened | SegmentClosed) -> bool:
    return (attempt.opened.segment, attempt.opened.run_index) == (run.segment, run.run_index)


def _wanted_ns(history: History, close: SegmentClosed, following: SegmentOpened) -> int:
    """From when on nothing but the orchestrator kept the next run waiting."""
    if following.is_carried_on:
        return close.closed_ns
    if history.config.schedule != "continuous" or _is_left_to_a_person(history, close):
        return following.opened_ns
    words_ns = [word.at_ns for word in history.directives if close.closed_ns < word.at_ns < following.opened_ns]
    moments_ns = (close.closed_ns, *words_ns, following.opened_ns)
    return max((end_ns for at_ns, end_ns in pairwise(moments_ns) if history.is_at_rest(at_ns)), default=close.closed_ns)


_WAITS = (Action.ASK, Action.STOP)


def _is_left_to_a_person(history: History, close: SegmentClosed) -> bool:
    """Whether the policy lets no run follow by itself, by what had been decided at the close."""
    if close.outcome is Outcome.ACCEPTED:
        return any(incident.action in _WAITS for incident in close.incidents)
    last = next((attempt for attempt in reversed(history.attempts) if _is_of(attempt, close)), None)
    if last is None:
        return True
    decision = last.decision
    return decision is not None and decision.decided_ns <= close.closed_ns and decision.action in _WAITS
