from prunella.records import Part
from prunella.training_segment.spans import Moments, spans_of

MARKS = {"built": 20, "loaded": 30, "first_step": 35, "saved": 95}


def parts(moments: Moments) -> list[tuple[Part, int, int]]:
    return [(span.part, span.start_ns, span.end_ns) for span in spans_of(moments)]


def test_spans_of_a_good_run_cover_everything_but_its_steps() -> None:
    found = parts(Moments(started_ns=10, marks=MARKS, steps_end_ns=90, ended_ns=99))

    assert found == [
        (Part.INITIALISATION, 10, 20),
        (Part.LOAD, 20, 30),
        (Part.FIRST_STEP, 30, 35),
        (Part.CHECKPOINT_STALL, 90, 95),
        (Part.TEARDOWN, 95, 99),
    ]


def test_fault_in_a_step_gives_the_unfinished_step_to_lost_progress() -> None:
    found = parts(Moments(started_ns=10, marks=MARKS, steps_end_ns=60, fault_ns=70, detected_ns=80, ended_ns=99))

    assert found[3:] == [(Part.LOST_PROGRESS, 60, 70), (Part.DETECTION, 70, 80), (Part.TEARDOWN, 80, 99)]


def test_fault_before_the_first_step_cuts_the_setup() -> None:
    found = parts(Moments(started_ns=10, marks={"built": 20}, steps_end_ns=None, fault_ns=25, detected_ns=40, ended_ns=50))

    assert found == [
        (Part.INITIALISATION, 10, 20),
        (Part.LOAD, 20, 25),
        (Part.DETECTION, 25, 40),
        (Part.TEARDOWN, 40, 50),
    ]


def test_fault_seen_before_the_last_record_was_written_never_overlaps_a_step() -> None:
    found = parts(Moments(started_ns=10, marks=MARKS, steps_end_ns=60, fault_ns=59, detected_ns=80, ended_ns=99))

    assert found[3:] == [(Part.DETECTION, 60, 80), (Part.TEARDOWN, 80, 99)]
