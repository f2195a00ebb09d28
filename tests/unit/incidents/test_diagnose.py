"""From what an attempt left behind to one diagnosis."""

from dataclasses import replace

import pytest

from prunella.errors import Cause
from prunella.incidents.diagnose import (
    CONFIDENCE_ABSENT,
    CONFIDENCE_OBSERVED,
    CONFIDENCE_RECORDED,
    Evidence,
    diagnose,
    replaced_nodes,
)
from prunella.records import (
    CheckpointRef,
    FailedRecord,
    Failure,
    GateFabricRecord,
    GateNodeRecord,
    Health,
    NodeRef,
    Stage,
    StopReason,
    TrainRecord,
    ValidationRecord,
    Verdict,
)

ALL = (Stage.GATE_FABRIC, Stage.TRAINING_SEGMENT, Stage.CHECKPOINT_VALIDATION)


def fabric(failure: Failure | None = None) -> GateFabricRecord:
    return GateFabricRecord(
        stage=Stage.GATE_FABRIC,
        verdict=Verdict.REJECTED if failure else Verdict.ACCEPTED,
        failure=failure,
        started_ns=1,
        ended_ns=2,
        admitted=(NodeRef(name="node-0"),),
        health={},
        checks=(),
    )


def train(failure: Failure | None = None) -> TrainRecord:
    return TrainRecord(
        stage=Stage.TRAINING_SEGMENT,
        verdict=Verdict.REJECTED if failure else Verdict.ACCEPTED,
        failure=failure,
        started_ns=1,
        ended_ns=2,
        stopped_by=StopReason.FAILURE if failure else StopReason.END,
        first_step=1,
        last_step=20,
        candidates=4,
        world_size=2,
        exits=(),
    )


def validation(failure: Failure | None = None) -> ValidationRecord:
    return ValidationRecord(
        stage=Stage.CHECKPOINT_VALIDATION,
        verdict=Verdict.REJECTED if failure else Verdict.ACCEPTED,
        failure=failure,
        started_ns=1,
        ended_ns=2,
        checkpoint=CheckpointRef(name="0000-00-0000", step=20, manifest_sha256="a" * 64),
        digest=None,
        checks=(),
    )


def gate_node(node: str, failure: Failure | None = None) -> GateNodeRecord:
    return GateNodeRecord(
        stage=Stage.GATE_NODE,
        verdict=Verdict.REJECTED if failure else Verdict.ACCEPTED,
        failure=failure,
        started_ns=1,
        ended_ns=2,
        node=node,
        health=Health.UNHEALTHY if failure else Health.HEALTHY,
        checks=(),
    )


def evidence(*asked: Stage, **found: object) -> Evidence:
    return Evidence(asked=frozenset(asked), **{"gate": {}, **found})  # type: ignore[arg-type]


def test_an_attempt_whose_stages_all_accepted_has_no_diagnosis() -> None:
    found = evidence(*ALL, fabric=fabric(), train=train(), validation=validation())

    assert diagnose(found) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (evidence(), "nothing of it ran"),
        (evidence(Stage.GATE_FABRIC), "gate_fabric was started and left no record"),
        (evidence(Stage.GATE_FABRIC, fabric=fabric()), "ended before training_segment"),
        (evidence(*ALL[:2], fabric=fabric()), "training_segment was started and left no record"),
        (evidence(*ALL[:2], fabric=fabric(), train=train()), "ended before checkpoint_validation"),
        (evidence(*ALL, fabric=fabric(), train=train()), "checkpoint_validation was started and left no record"),
    ],
    ids=["nothing", "fabric silent", "before train", "train silent", "before validation", "validation silent"],
)
def test_absence_is_vanishing_and_names_where_it_happened(found: Evidence, words: str) -> None:
    diagnosis = diagnose(found)

    assert diagnosis is not None
    assert diagnosis.cause is Cause.VANISHED
    assert diagnosis.confidence == CONFIDENCE_ABSENT
    assert words in diagnosis.message


@pytest.mark.parametrize("reason", [StopReason.SIGNAL, StopReason.WALL_CLOCK])
def test_an_attempt_that_was_stopped_before_its_first_step_lacks_no_validation(reason: StopReason) -> None:
    stopped = replace(train(), stopped_by=reason, last_step=0, candidates=0)

    assert diagnose(evidence(*ALL[:2], fabric=fabric(), train=stopped)) is None


@pytest.mark.parametrize(
    "stopped",
    [
        replace(train(), stopped_by=StopReason.SIGNAL, last_step=3, candidates=1),
        replace(train(), first_step=21, candidates=0),
    ],
    ids=["after a step", "nothing was left to train"],
)
def test_an_attempt_that_has_a_checkpoint_to_judge_lacks_its_validation(stopped: TrainRecord) -> None:
    diagnosis = diagnose(evidence(*ALL[:2], fabric=fabric(), train=stopped))

    assert diagnosis is not None
    assert diagnosis.cause is Cause.VANISHED


def test_the_first_stage_that_failed_explains_the_attempt() -> None:
    too_few = Failure(cause=Cause.NODE_UNHEALTHY, message="1 of 2 nodes passed")
    found = evidence(*ALL, fabric=fabric(too_few), train=train(Failure(cause=Cause.PROCESS_CRASH, message="later")))

    diagnosis = diagnose(found)

    assert diagnosis is not None
    assert (diagnosis.cause, diagnosis.message) == (Cause.NODE_UNHEALTHY, "1 of 2 nodes passed")
    assert diagnosis.evidence["stage"] == "gate_fabric"


def test_a_diagnosis_names_culprit_node_rank_and_step_and_keeps_the_evidence() -> None:
    crash = Failure(cause=Cause.PROCESS_CRASH, message="rank 1 died", node="node-1", rank=1, step=14, evidence={"signal": 9})

    diagnosis = diagnose(evidence(*ALL[:2], fabric=fabric(), train=train(crash)))

    assert diagnosis is not None
    assert (diagnosis.node, diagnosis.rank, diagnosis.step) == ("node-1", 1, 14)
    assert diagnosis.evidence == {"stage": "training_segment", "verdict": "rejected", "signal": 9}


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_a_stage_names_is_taken_over_with_its_confidence(cause: Cause) -> None:
    record = FailedRecord(
        stage=Stage.TRAINING_SEGMENT,
        verdict=Verdict.REJECTED,
        started_ns=1,
        ended_ns=2,
        failure=Failure(cause=cause, message="said so"),
    )

    diagnosis = diagnose(evidence(*ALL[:2], fabric=fabric(), train=record))

    observed = (Cause.HANG, Cause.PROCESS_CRASH)
    assert diagnosis is not None
    assert diagnosis.cause is cause
    assert diagnosis.confidence == (CONFIDENCE_OBSERVED if cause in observed else CONFIDENCE_RECORDED)


def test_an_unknown_verdict_is_no_success() -> None:
    record = FailedRecord(
        stage=Stage.CHECKPOINT_VALIDATION,
        verdict=Verdict.UNKNOWN,
        started_ns=1,
        ended_ns=2,
        failure=Failure(cause=Cause.VANISHED, message="ended without a record"),
    )

    diagnosis = diagnose(evidence(*ALL, fabric=fabric(), train=train(), validation=record))

    assert diagnosis is not None
    assert diagnosis.evidence["verdict"] == "unknown"


def test_only_nodes_that_did_not_pass_are_replaced() -> None:
    bad = Failure(cause=Cause.NODE_UNHEALTHY, message="wrong products", node="node-1")
    gates = {"node-0": gate_node("node-0"), "node-1": gate_node("node-1", bad)}

    replaced = replaced_nodes(evidence(*ALL, gate=gates))

    assert [(found.node, found.cause) for found in replaced] == [("node-1", Cause.NODE_UNHEALTHY)]


def test_a_gate_that_raised_is_laid_to_its_node_even_when_its_record_names_none() -> None:
    raised = FailedRecord(
        stage=Stage.GATE_NODE,
        verdict=Verdict.REJECTED,
        started_ns=1,
        ended_ns=2,
        failure=Failure(cause=Cause.STORAGE_UNAVAILABLE, message="out of reach"),
    )

    replaced = replaced_nodes(evidence(*ALL, gate={"node-2": raised}))

    assert [(found.node, found.cause) for found in replaced] == [("node-2", Cause.STORAGE_UNAVAILABLE)]
    assert replaced[0].evidence["stage"] == "gate_node"


def test_a_node_whose_gate_left_no_record_is_not_healthy() -> None:
    replaced = replaced_nodes(evidence(Stage.GATE_FABRIC, gate={"node-1": None}))

    assert [(found.node, found.cause) for found in replaced] == [("node-1", Cause.VANISHED)]


def test_nodes_that_were_perhaps_never_gated_are_not_said_to_be_replaced() -> None:
    replaced = replaced_nodes(evidence(gate={"node-0": None, "node-1": None}))

    assert replaced == ()
