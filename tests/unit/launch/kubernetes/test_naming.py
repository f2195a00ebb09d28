"""A name is a handle: the same for whoever asks again for the same start, another for every other start."""

import dataclasses
import re
from typing import Any

import pytest

from prunella.launch.kubernetes.naming import ClusterLaunch
from prunella.records import Stage
from unit.launch.kubernetes.examples import FOLDER, launch

#: Source: RFC 1035, which the TrainJob's own validation cites; stricter than the DNS labels that pods ask for.
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
#: What Kubernetes lets a label's value be. Source: its reference of labels.
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
#: JobSet's longest addition to a TrainJob's name (`-node-0-`, a four-digit index, 6 random characters), in a name of 63.
_ROOM_FOR_JOBSET = 18

_GATE = launch(Stage.GATE_NODE)
#: Each is another start than `_GATE`, by one thing only.
_OTHERS: dict[str, ClusterLaunch] = {
    "root": launch(Stage.GATE_NODE, root=FOLDER),
    "experiment": launch(Stage.GATE_NODE, experiment="demo-2"),
    "segment": launch(Stage.GATE_NODE, segment=4),
    "attempt": launch(Stage.GATE_NODE, attempt=2),
    "run of the segment": launch(Stage.GATE_NODE, run_index=1),
    "another life of the root": launch(Stage.GATE_NODE, opened_ns=7),
    "start after a vanishing": launch(Stage.GATE_NODE, start=1),
    "stage": launch(Stage.GATE_FABRIC),
    "request of the same attempt": dataclasses.replace(_GATE, request_key=_GATE.request_key + ".other"),
}


def test_a_second_try_of_the_same_start_has_the_same_name() -> None:
    assert launch(Stage.GATE_NODE).name == _GATE.name


@pytest.mark.parametrize("other", _OTHERS.values(), ids=list(_OTHERS))
def test_any_other_start_has_another_name_so_that_nobody_attaches_to_a_finished_one(other: ClusterLaunch) -> None:
    assert other.name != _GATE.name


def test_where_pods_may_go_is_not_in_the_name() -> None:
    assert launch(Stage.GATE_NODE, excluded=("node-2",)).name == _GATE.name


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"experiment": "9" * 63},
        {"experiment": "a" + "-" * 62},
        {"experiment": "a" * 63, "segment": 99_999, "attempt": 999},
        {"experiment": ""},
    ],
    ids=["usual", "digits", "hyphens", "long", "a sweep"],
)
def test_every_name_is_a_dns_label_with_room_for_what_jobset_adds(stage: Stage, changes: dict[str, Any]) -> None:
    name = launch(stage, **changes).name

    assert _DNS_LABEL.fullmatch(name)
    assert len(name) <= 63 - _ROOM_FOR_JOBSET


@pytest.mark.parametrize("experiment", ["demo", "a" * 63, "demo-", ""])
def test_every_label_is_one_that_kubernetes_takes(experiment: str) -> None:
    labels = launch(Stage.TRAINING_SEGMENT, experiment=experiment).labels

    assert [value for value in labels.values() if not _LABEL_VALUE.fullmatch(value)] == []


def test_labels_say_which_experiment_segment_attempt_and_stage_a_pod_belongs_to() -> None:
    labels = launch(Stage.TRAINING_SEGMENT).labels

    told = {name: labels[f"prunella.{name}"] for name in ("experiment", "segment", "attempt", "stage", "start")}
    assert told == {"experiment": "demo", "segment": "3", "attempt": "1", "stage": "training_segment", "start": "0"}
