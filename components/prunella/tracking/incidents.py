"""What went wrong and what it cost: every incident once, with its recovery broken into phases (R11).

Recovery runs from the fault, the last moment at which all was known to be well, to the end of the first new useful step: the
first kept step beyond everything that was executed before the fault (or the segment's last step again, where the fault undid
that). Time in which the experiment was paused, for its schedule or for a person, belongs to no recovery. The phases follow
each other and add up to it exactly: executing lost steps again is part of `first_step`, opening the attempt, its gate and the
start of its processes are part of `acquire`. An incident nothing has recovered from has none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prunella.records import Incident, Part, StepRecord, TrainRecord
from prunella.tracking.history import Attempt, History
from prunella.tracking.time_accounting import Stretch, pauses

PHASES = ("detect", "tear_down", "decide", "acquire", "load", "first_step")


@dataclass(frozen=True, kw_only=True, slots=True)
class IncidentStory:
    """An incident, where it happened, and how long healing took, in nanoseconds by phase (None: not recovered).

    `attempt` is None for an incident outside any attempt. `after_step` is the newest step executed before the fault.
    """

    incident: Incident
    segment: int
    attempt: int | None
    after_step: int
    recovery_ns: dict[str, int] | None

    @property
    def culprit(self) -> str | None:
        """Who is to blame, as far as it is known: a node, a rank, or both."""
        diagnosis = self.incident.diagnosis
        rank = None if diagnosis.rank is None else f"rank {diagnosis.rank}"
        return ", ".join(part for part in (diagnosis.node, rank) if part) or None

    @property
    def recovery_s(self) -> dict[str, float]:
        """Seconds by phase; empty while nothing has recovered from it."""
        return {phase: ns / 1e9 for phase, ns in (self.recovery_ns or {}).items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """Where an incident is on record. `attempt` is None where only a close has it."""

    segment: int
    attempt: Attempt | None
    incident: Incident


def stories(history: History) -> tuple[IncidentStory, ...]:
    """Every incident of the experiment once, in the order in which they were decided."""
    met = _met(history)
    paused = pauses(history) if met else ()
    told = [_story(history, source, paused) for source in met]
    return tuple(sorted(told, key=lambda story: story.incident.decided_ns))


def incident_count(history: History) -> int:
    """How many incidents the experiment met: as many as there are stories, for less than telling them costs."""
    return len(_met(history))


def _met(history: History) -> list[_Source]:
    """Every incident once, where it is first on record."""
    found: dict[tuple[object, ...], _Source] = {}
    for source in _sources(history):
        incident, diagnosis = source.incident, source.incident.diagnosis
        identity = (diagnosis.cause, diagnosis.node, diagnosis.rank, incident.fault_ns, incident.detected_ns)
        found.setdefault(identity, source)
    return list(found.values())


def _sources(history: History) -> Iterator[_Source]:
    """Incidents of the verdicts first; a close repeats them, and adds those outside any attempt."""
    for attempt in history.attempts:
        for incident in attempt.decision.incidents if attempt.decision is not None else ():
            yield _Source(segment=attempt.opened.segment, attempt=attempt, incident=incident)
    for run, close in history.runs:
        for incident in close.incidents if close is not None else ():
            yield _Source(segment=run.segment, attempt=None, incident=incident)


def _story(history: History, source: _Source, paused: Sequence[Stretch]) -> IncidentStory:
    incident, attempt = source.incident, source.attempt
    executed = [step.record for step in history.steps if step.record.end_ns <= incident.fault_ns]
    after_step = max((record.step for record in executed), default=0)
    found = _first_useful(history, source.segment, after_step, incident)
    return IncidentStory(
        incident=incident,
        segment=source.segment,
        attempt=attempt.opened.attempt if attempt is not None else None,
        after_step=after_step,
        recovery_ns=None if found is None else _phases(incident, attempt, *found, paused),
    )


def _first_useful(history: History, segment: int, after_step: int, incident: Incident) -> tuple[Attempt, StepRecord] | None:
    """The step that ends the recovery, and the attempt that executed it."""
    target = min(after_step + 1, (segment + 1) * history.config.steps_per_segment)
    for attempt in history.attempts:
        for step in attempt.steps:
            is_after = step.record.end_ns > max(incident.fault_ns, incident.detected_ns)
            if step.is_kept and is_after and step.record.step >= target:
                return attempt, step.record
    return None


def _phases(
    incident: Incident, attempt: Attempt | None, healed_by: Attempt, useful: StepRecord, paused: Sequence[Stretch]
) -> dict[str, int]:
    """Cut the recovery at its milestones, and leave pauses out. One that lies past the next, or outside, gives a phase of no
    length."""
    decision = attempt.decision if attempt is not None else None
    is_decided_later = attempt is healed_by or decision is None
    torn_down_ns = incident.detected_ns if is_decided_later or decision is None else decision.started_ns
    decided_ns = incident.detected_ns if is_decided_later else incident.decided_ns
    load_start_ns, load_end_ns = _load(healed_by, useful)
    bounds = [incident.fault_ns]
    for milestone_ns in (incident.detected_ns, torn_down_ns, decided_ns, load_start_ns, load_end_ns, useful.end_ns):
        bounds.append(min(max(milestone_ns, bounds[-1]), useful.end_ns))
    return dict(zip(PHASES, (_unpaused_ns(left, right, paused) for left, right in pairwise(bounds)), strict=True))


def _unpaused_ns(start_ns: int, end_ns: int, paused: Sequence[Stretch]) -> int:
    overlaps_ns = (min(stretch.end_ns, end_ns) - max(stretch.start_ns, start_ns) for stretch in paused)
    return end_ns - start_ns - sum(max(0, overlap_ns) for overlap_ns in overlaps_ns)


def _load(healed_by: Attempt, useful: StepRecord) -> tuple[int, int]:
    """When the healing attempt loaded its checkpoint; without a record of it, no time before its first step."""
    spans = healed_by.training.spans if isinstance(healed_by.training, TrainRecord) else ()
    loads = [span for span in spans if span.part is Part.LOAD]
    first_ns = min((step.record.start_ns for step in healed_by.steps), default=useful.start_ns)
    if not loads:
        return first_ns, first_ns
    return min(span.start_ns for span in loads), max(span.end_ns for span in loads)
