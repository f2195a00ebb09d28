"""The names of an attempt's seconds, outside its steps. Pure. The steps' own time is in their records.

A run passes marks in a fixed order; the time between two of them has one name. A fault cuts the run where it stood: what
comes after is detection, then teardown. Spans never overlap and never leave a hole, except where step records lie.
"""

from dataclasses import dataclass

from prunella.records import Part, Span
from prunella.training_segment.heartbeat import Mark

#: What the time until each mark is called, in the order of a run.
_UNTIL: tuple[tuple[Mark, Part], ...] = (
    (Mark.BUILT, Part.INITIALISATION),
    (Mark.LOADED, Part.LOAD),
    (Mark.FIRST_STEP, Part.FIRST_STEP),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """When things happened to an attempt, in nanoseconds.

    `steps_end_ns` is the end of the last finished step, None when none finished; `fault_ns` and `detected_ns` are None when
    nothing went wrong.
    """

    started_ns: int
    marks: dict[str, int]
    steps_end_ns: int | None
    ended_ns: int
    fault_ns: int | None = None
    detected_ns: int | None = None


def spans_of(moments: Moments) -> tuple[Span, ...]:
    """The spans of an attempt, in order; empty ones are left out."""
    if moments.fault_ns is None or moments.detected_ns is None:
        return _cleaned([*_setup(moments, moments.ended_ns), *_ending(moments)])
    fault_ns = max(moments.fault_ns, moments.steps_end_ns or 0)
    detected_ns = max(moments.detected_ns, fault_ns)
    return _cleaned(
        [
            *_setup(moments, fault_ns),
            *_unfinished(moments, fault_ns),
            Span(part=Part.DETECTION, start_ns=fault_ns, end_ns=detected_ns),
            Span(part=Part.TEARDOWN, start_ns=detected_ns, end_ns=moments.ended_ns),
        ]
    )


def _setup(moments: Moments, cut_ns: int) -> list[Span]:
    found, begin_ns = [], moments.started_ns
    for mark, part in _UNTIL:
        end_ns = min(moments.marks.get(mark.value, cut_ns), cut_ns)
        found.append(Span(part=part, start_ns=begin_ns, end_ns=max(begin_ns, end_ns)))
        begin_ns = max(begin_ns, end_ns)
    return found


def _ending(moments: Moments) -> list[Span]:
    """From the last step to the end of a run that ended well: the save nobody trains beside, then the processes' end."""
    steps_end_ns = moments.steps_end_ns or moments.ended_ns
    saved_ns = moments.marks.get(Mark.SAVED.value, steps_end_ns)
    return [
        Span(part=Part.CHECKPOINT_STALL, start_ns=steps_end_ns, end_ns=saved_ns),
        Span(part=Part.TEARDOWN, start_ns=saved_ns, end_ns=moments.ended_ns),
    ]


def _unfinished(moments: Moments, fault_ns: int) -> list[Span]:
    """The step that was under way has no record; whatever it did is done again."""
    first_step_ns = moments.marks.get(Mark.FIRST_STEP.value)
    if first_step_ns is None:
        return []
    begin_ns = moments.steps_end_ns or first_step_ns
    return [Span(part=Part.LOST_PROGRESS, start_ns=begin_ns, end_ns=max(begin_ns, fault_ns))]


def _cleaned(spans: list[Span]) -> tuple[Span, ...]:
    return tuple(span for span in spans if span.end_ns > span.start_ns)
