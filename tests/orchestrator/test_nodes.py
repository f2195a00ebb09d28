"""The node ledger shown to a cluster: the official client against a stand-in for the API server."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api_double import Cluster, granted, serving
from orchestrator.schemas import kept_by_kubernetes
from prunella.__main__ import main
from prunella.errors import ConfigError, PrunellaError
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.orchestration import cluster as door
from prunella.orchestration.sweep import show_on_cluster
from prunella.storage import FolderStore

OURS = {"key": "prunella.cordoned", "effect": "NoSchedule"}
#: What Kubernetes itself adds to a node that is unschedulable.
KUBERNETES_OWN = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
THEIRS = {"key": "maintenance", "value": "tonight", "effect": "NoExecute"}

Show = Callable[[], dict[str, str]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster with the nodes of the default fleet."""
    with serving(Cluster()) as cluster:
        for name in ("node-0", "node-1", "node-2"):
            cluster.node(name)
        monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig(tmp_path))
        yield cluster


@pytest.fixture
def fleet(root: str) -> Fleet:
    return Fleet(FolderStore(root))


@pytest.fixture
def show(root: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Show:
    """What the last task of a sweep does, without the pauses between tries."""
    monkeypatch.setattr(door, "_FIRST_PAUSE_S", 0.0)
    return lambda: show_on_cluster(root, None)


def spec(cluster: Cluster, name: str = "node-1") -> dict[str, Any]:
    found: dict[str, Any] = cluster.nodes[name]["spec"]
    return found


def marks(cluster: Cluster, name: str = "node-1") -> dict[str, str]:
    """Labels and annotations of ours."""
    metadata = cluster.nodes[name]["metadata"]
    both = {**metadata["labels"], **metadata.get("annotations", {})}
    return {key.removeprefix("prunella."): value for key, value in both.items() if key.startswith("prunella.")}


# ------------------------------------------------------------------------------------------------ each transition


def test_every_node_carries_its_state_and_role(show: Show, cluster: Cluster, fleet: Fleet) -> None:
    fleet.admit("node-0", Owner.GATE, "passed the gate")

    told = show()

    assert told == dict.fromkeys(("node-0", "node-1", "node-2"), "changed")
    assert marks(cluster, "node-0") == {"state": "available", "role": "active"}
    assert marks(cluster, "node-2") == {"state": "new", "role": "spare"}
    assert spec(cluster, "node-0") == {}


def test_a_cordon_becomes_a_taint_unschedulable_and_a_reason(show: Show, cluster: Cluster, fleet: Fleet) -> None:
    fleet.cordon("node-1", Owner.GATE, "matrix_product: 4e6 ulps")

    show()

    assert spec(cluster) == {"taints": [OURS], "unschedulable": True}
    assert marks(cluster) == {
        "state": "cordoned",
        "role": "active",
        "cordon-reason": "gate: matrix_product: 4e6 ulps",
        "made-unschedulable": "true",
    }
    assert spec(cluster, "node-0") == {}


def test_an_uncordon_takes_away_what_we_put_and_nothing_else(show: Show, cluster: Cluster, fleet: Fleet) -> None:
    cluster.node("node-1", taints=[THEIRS])
    fleet.cordon("node-1", Owner.OPERATOR, "smells of smoke")
    show()
    cluster.nodes["node-1"]["spec"]["taints"].append(KUBERNETES_OWN)
    fleet.uncordon("node-1", Owner.OPERATOR, "new fan")

    show()

    assert spec(cluster) == {"taints": [THEIRS, KUBERNETES_OWN]}
    assert marks(cluster) == {"state": "returned", "role": "active"}


def test_a_node_that_somebody_else_cordoned_first_stays_cordoned_when_ours_is_lifted(
    show: Show, cluster: Cluster, fleet: Fleet
) -> None:
    cluster.node("node-1", unschedulable=True, taints=[KUBERNETES_OWN])
    fleet.cordon("node-1", Owner.OPERATOR, "smells of smoke")
    show()
    cordoned = spec(cluster)
    fleet.uncordon("node-1", Owner.OPERATOR, "new fan")

    show()

    assert cordoned == {"unschedulable": True, "taints": [KUBERNETES_OWN, OURS]}
    assert spec(cluster) == {"unschedulable": True, "taints": [KUBERNETES_OWN]}


def test_a_cordon_that_somebody_lifted_in_the_cluster_is_shown_again_and_is_still_ours(
    show: Show, cluster: Cluster, fleet: Fleet
) -> None:
    fleet.cordon("node-1", Owner.OPERATOR, "smells of smoke")
    show()
    del cluster.nodes["node-1"]["spec"]["unschedulable"]

    show()
    again = spec(cluster)
    fleet.uncordon("node-1", Owner.OPERATOR, "new fan")
    show()

    assert again == {"taints": [OURS], "unschedulable": True}
    assert spec(cluster) == {}


def test_a_node_that_shows_its_row_already_is_sent_nothing(show: Show, cluster: Cluster, fleet: Fleet) -> None:
    fleet.cordon("node-1", Owner.OPERATOR, "smells of smoke")
    show()
    sent = list(cluster.patches)

    told = show()

    assert set(told.values()) == {"as wanted"}
    assert cluster.patches == sent


# ------------------------------------------------------------------------------------------------ others, and trouble


def test_a_node_that_somebody_changes_meanwhile_is_read_anew_and_keeps_both_changes(
    show: Show, cluster: Cluster, fleet: Fleet
) -> None:
    fleet.cordon("node-0", Owner.OPERATOR, "smells of smoke")
    cluster.meddling = [{"spec": {"taints": [THEIRS]}}, {"spec": {"unschedulable": True}}]

    show()
    fleet.uncordon("node-0", Owner.OPERATOR, "new fan")
    show()

    assert spec(cluster, "node-0") == {"taints": [THEIRS], "unschedulable": True}


def test_a_node_that_is_changed_each_time_is_given_up_and_the_others_are_shown(show: Show, cluster: Cluster) -> None:
    cluster.meddling = [{"metadata": {"labels": {"beat": str(index)}}} for index in range(5)]

    with pytest.raises(PrunellaError, match="1 nodes do not show the ledger's word, first node-0: 409 Conflict"):
        show()

    assert marks(cluster, "node-0") == {}
    assert marks(cluster, "node-2") == {"state": "new", "role": "spare"}


def test_a_node_that_the_cluster_does_not_have_is_named_and_the_others_are_shown(
    show: Show, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    del cluster.nodes["node-0"]

    told = show()

    assert told == {"node-0": "not in the cluster", "node-1": "changed", "node-2": "changed"}
    assert "node_shown node=node-0 outcome=not in the cluster" in caplog.text


def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_done_twice(
    show: Show, cluster: Cluster, fleet: Fleet
) -> None:
    fleet.cordon("node-0", Owner.OPERATOR, "smells of smoke")
    cluster.lost_answers = 1

    told = show()

    assert told["node-0"] == "as wanted"
    assert [name for name, _ in cluster.patches].count("node-0") == 1
    assert marks(cluster, "node-0")["made-unschedulable"] == "true"


def test_a_server_that_goes_away_in_the_middle_is_one_error_and_the_next_sweep_goes_on(
    show: Show, cluster: Cluster, fleet: Fleet
) -> None:
    fleet.cordon("node-2", Owner.OPERATOR, "smells of smoke")
    cluster.away_after = 3

    with pytest.raises(PrunellaError, match=r"does not answer .* do the same again"):
        show()
    half = [name for name, _ in cluster.patches]
    cluster.away_after = None
    told = show()

    assert half == ["node-0"]
    assert told == {"node-0": "as wanted", "node-1": "changed", "node-2": "changed"}
    assert spec(cluster, "node-2") == {"taints": [OURS], "unschedulable": True}


def test_without_the_right_to_nodes_the_error_names_the_role(
    show: Show, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.api_double.rights", dict)

    with pytest.raises(ConfigError, match=r"403 .*prunella-node-keeper"):
        show()


def test_without_a_cluster_the_error_says_how_to_name_one(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))

    with pytest.raises(ConfigError, match="KUBECONFIG"):
        show_on_cluster(root, None)


# ------------------------------------------------------------------------------------------------ rights, the command


def test_showing_nodes_asks_for_what_the_role_grants_and_no_more(show: Show, cluster: Cluster) -> None:
    show()

    assert set(cluster.asked) == granted("nodes")
    assert cluster.refused == []


def test_a_patch_has_only_fields_that_kubernetes_knows(show: Show, cluster: Cluster, fleet: Fleet) -> None:
    fleet.cordon("node-1", Owner.OPERATOR, "smells of smoke")

    show()

    sent = {"apiVersion": "v1", "kind": "Node", **dict(cluster.patches)["node-1"]}
    sent["metadata"]["annotations"] = {key: value for key, value in sent["metadata"]["annotations"].items() if value}
    assert kept_by_kubernetes(sent) == sent


def test_a_node_with_a_field_that_is_not_kubernetes_own_is_refused_by_the_stand_in(cluster: Cluster) -> None:
    patch = {"metadata": {"resourceVersion": "1"}, "spec": {"unscheduleable": True}}

    code, _ = cluster.answer("PATCH", "/api/v1/nodes/node-1", json.dumps(patch).encode(), "application/merge-patch+json")

    assert code == 422
    assert spec(cluster) == {}


def test_the_command_says_what_it_would_send_and_then_sends_it(
    root: str, cluster: Cluster, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.cordon("node-1", Owner.OPERATOR, "smells of smoke")
    command = ["prunella", "kubernetes", "nodes", "--root", root]

    dry = printed(capsys, [*command, "--dry-run"])
    untouched = spec(cluster)
    wet = printed(capsys, command)

    assert re.search(r"^node-1: changed, .*operator: smells of smoke.*\"unschedulable\": true", dry, re.MULTILINE)
    assert untouched == {}
    assert wet == dry
    assert spec(cluster)["unschedulable"] is True


def printed(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return capsys.readouterr().out
