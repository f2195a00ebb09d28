"""MLflow shows what the ledger says: once, whatever happened to the mirror before."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflow_pictures import history_of, snapshot
from prunella.checkpoint_history import prune
from prunella.errors import Cause, TrackingUnavailable
from prunella.records import Action, CheckpointMark, SegmentClosed
from prunella.tracking.history import History, read_history
from prunella.tracking.incidents import IncidentStory, stories
from prunella.tracking.mirror import MirrorResult, mirror
from prunella.tracking.mlflow_door import without_password
from prunella.tracking.series import Point, close_points
from unit.tracking.campaign import (
    DIGEST,
    Campaign,
    accept,
    open_campaign,
    play,
    play_crash,
    play_segment_0,
    play_segment_1,
)

mlflow = pytest.importorskip("mlflow", reason="needs the component extra (mlflow)")

from mlflow.protos.databricks_pb2 import PERMISSION_DENIED  # noqa: E402

DICTIONARY = Path(__file__).resolve().parents[3] / "mlflow" / "metrics.yaml"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store for the module: creating it runs all of MLflow's migrations."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    yield f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


@pytest.fixture(scope="module")
def mirrored(uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Campaign, MirrorResult]:
    """The whole campaign, mirrored once."""
    campaign = play(str(tmp_path_factory.mktemp("root")), name="whole")
    return campaign, mirror(campaign.ledger, uri=uri)


def test_the_parent_has_each_kept_step_once_and_a_child_every_executed_one(
    uri: str, mirrored: tuple[Campaign, MirrorResult]
) -> None:
    _, result = mirrored

    parent = history_of(uri, result.run_id)["train/loss"]
    children = [history_of(uri, run_id)["train/loss"] for run_id in result.attempt_run_ids]

    assert [step for step, _, _ in parent] == list(range(1, 41))
    assert [sorted(step for step, _, _ in child) for child in children] == [
        list(range(1, 14)),
        list(range(11, 21)),
        list(range(16, 21)),
        list(range(21, 41)),
    ]


def test_every_key_logged_is_in_the_dictionary_and_every_key_of_it_is_logged(
    uri: str, mirrored: tuple[Campaign, MirrorResult]
) -> None:
    _, result = mirrored
    dictionary = yaml.safe_load(DICTIONARY.read_text())
    patterns = {key: re.compile(re.sub(r"<\w+>", r"[^/]+", key)) for key in dictionary}

    logged = {
        (key, writer)
        for run_id, writer in [(result.run_id, "parent"), *((run_id, "attempt") for run_id in result.attempt_run_ids)]
        for key in history_of(uri, run_id)
    }

    unknown = {key for key, _ in logged if not any(pattern.fullmatch(key) for pattern in patterns.values())}
    silent = {name for name, pattern in patterns.items() if not any(pattern.fullmatch(key) for key, _ in logged)}
    by_child = {name for name, pattern in patterns.items() if any(pattern.fullmatch(k) and w == "attempt" for k, w in logged)}
    assert unknown == set()
    assert silent == set()
    assert by_child == {name for name, entry in dictionary.items() if "attempt" in entry["writer"]}


def test_mirroring_again_adds_nothing(uri: str, mirrored: tuple[Campaign, MirrorResult]) -> None:
    campaign, first = mirrored
    before = snapshot(uri, first)

    second = mirror(campaign.ledger, uri=uri)

    assert second.points_added == 0
    assert (second.run_id, second.attempt_run_ids) == (first.run_id, first.attempt_run_ids)
    assert snapshot(uri, second) == before


def test_mirroring_again_looks_at_each_run_once_at_most_and_at_no_series(
    uri: str, mirrored: tuple[Campaign, MirrorResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, _ = mirrored
    asked: dict[str, list[str]] = {"get_run": [], "get_metric_history": []}
    for name, questions in asked.items():
        monkeypatch.setattr(mlflow.MlflowClient, name, _noting(getattr(mlflow.MlflowClient, name), questions))

    mirror(campaign.ledger, uri=uri)

    assert len(asked["get_run"]) == len(set(asked["get_run"]))
    assert asked["get_metric_history"] == []


def _noting(asking: Callable[..., Any], questions: list[str]) -> Callable[..., Any]:
    def noted(self: Any, run_id: str, *arguments: Any) -> Any:
        questions.append(run_id)
        return asking(self, run_id, *arguments)

    return noted


def test_a_mirror_that_is_cut_short_again_and_again_ends_with_the_same_picture(
    uri: str, mirrored: tuple[Campaign, MirrorResult], tmp_path: Path
) -> None:
    _, whole = mirrored
    campaign = play(str(tmp_path), name="whole")
    cuts = 0
    limit_s = 0.02
    result = None

    while result is None:
        try:
            result = mirror(campaign.ledger, uri=uri, experiment_name="cut-short", timeout_s=limit_s)
        except TrackingUnavailable:
            cuts, limit_s = cuts + 1, limit_s * 1.5

    assert cuts > 0
    assert snapshot(uri, result) == snapshot(uri, whole)


def test_a_mirror_that_was_away_catches_up(uri: str, tmp_path: Path) -> None:
    always, absent = open_campaign(str(tmp_path / "a"), name="same"), open_campaign(str(tmp_path / "b"), name="same")
    for campaign in (always, absent):
        play_segment_0(campaign)
    mirror(always.ledger, uri=uri, experiment_name="always")
    for campaign in (always, absent):
        play_segment_1(campaign)

    followed = mirror(always.ledger, uri=uri, experiment_name="always")
    caught_up = mirror(absent.ledger, uri=uri, experiment_name="absent")

    assert snapshot(uri, followed) == snapshot(uri, caught_up)


def test_a_pass_works_out_the_figures_of_new_closes_only(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = open_campaign(str(tmp_path), name="closes")
    play_segment_0(campaign)
    mirror(campaign.ledger, uri=uri)
    play_segment_1(campaign)
    worked_out: list[int] = []

    def noted(history: History, close: SegmentClosed) -> list[Point]:
        worked_out.append(close.segment)
        return close_points(history, close)

    monkeypatch.setattr("prunella.tracking.mirror.close_points", noted)

    result = mirror(campaign.ledger, uri=uri)

    assert worked_out == [1]
    assert len(history_of(uri, result.run_id)["final/ettr"]) == 2


def test_a_pass_tells_the_incidents_once_however_many_attempts_there_are(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = play(str(tmp_path), name="told")
    told: list[int] = []

    def noted(history: History) -> tuple[IncidentStory, ...]:
        told.append(len(history.attempts))
        return stories(history)

    for module in ("mirror", "summary"):
        monkeypatch.setattr(f"prunella.tracking.{module}.stories", noted)

    mirror(campaign.ledger, uri=uri)

    assert told == [4, 4], "once for the pass, once for its note"


def test_steps_that_a_revoked_end_checkpoint_undid_are_on_the_parent_twice_and_a_tag_names_them(
    uri: str, tmp_path: Path
) -> None:
    campaign = open_campaign(str(tmp_path), name="undone")
    play_segment_0(campaign)
    mirror(campaign.ledger, uri=uri)
    play_revoked_end(campaign)

    result = mirror(campaign.ledger, uri=uri)

    steps = [step for step, _, _ in history_of(uri, result.run_id)["train/loss"]]
    assert steps == sorted([*range(1, 41), *range(16, 21)])
    assert mlflow.MlflowClient(uri).get_run(result.run_id).data.tags["prunella.repeated_steps"] == "16-20"


def play_revoked_end(campaign: Campaign) -> None:
    """Segment 1: its first attempt finds that the end checkpoint of segment 0 loads no more; its second resumes at step 15."""
    campaign.open_run(1)
    campaign.open_attempt(1, 0, campaign.candidates["0000-02-0000"])
    broken = campaign.incident(
        Cause.CHECKPOINT_INVALID, Action.ROLL_BACK, fault_ns=campaign.now_ns, detected_ns=campaign.now_ns, lost_steps=5
    )
    campaign.decide(1, 0, Action.ROLL_BACK, (broken,))
    mark(campaign, "0000-02-0000", "revoked")
    campaign.open_attempt(1, 1, campaign.candidates["0000-01-0000"])
    campaign.gate(1, 1)
    campaign.train(1, 1, 16, 40)
    accept(campaign, 1, 1, "0001-01-0004", acc=0.5, loss=3.6)


def mark(campaign: Campaign, checkpoint: str, word: str) -> None:
    record = CheckpointMark(checkpoint=checkpoint, reason="loads no more", at_ns=campaign.now_ns)
    campaign.ledger.put(campaign.ledger.mark_key(checkpoint, word), record)


def test_the_parent_gets_no_step_of_a_segment_that_is_not_accepted_yet(uri: str, tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path), name="early")
    play_crash(campaign)

    result = mirror(campaign.ledger, uri=uri)

    assert "train/loss" not in history_of(uri, result.run_id)
    assert mlflow.MlflowClient(uri).get_run(result.run_id).info.status == "RUNNING"


def test_a_vanished_attempt_does_not_stay_running(uri: str, tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path), name="vanished")
    campaign.open_run(0)
    campaign.open_attempt(0, 0, None)
    client = mlflow.MlflowClient(uri)
    alone = mirror(campaign.ledger, uri=uri)
    before = client.get_run(alone.attempt_run_ids[0]).info.status
    campaign.open_run(0, run_index=1)
    campaign.open_attempt(0, 1, None)

    result = mirror(campaign.ledger, uri=uri)

    statuses = [client.get_run(run_id).info.status for run_id in result.attempt_run_ids]
    assert before == "RUNNING"
    assert statuses == ["KILLED", "RUNNING"]


def test_aliases_name_the_last_verified_and_the_best_checkpoint(uri: str, mirrored: tuple[Campaign, MirrorResult]) -> None:
    campaign, _ = mirrored
    client = mlflow.MlflowClient(uri)
    name = f"whole-{read_history(campaign.ledger).experiment_sha256[:8]}"

    versions = [client.get_model_version_by_alias(name, alias) for alias in ("last-verified", "best")]

    assert [version.tags["prunella.checkpoint"] for version in versions] == ["0001-00-0003", "0001-00-0003"]


def models_of(uri: str, result: MirrorResult) -> dict[str, Any]:
    """Logged models by checkpoint."""
    found = mlflow.MlflowClient(uri).search_logged_models([result.experiment_id], f"source_run_id = '{result.run_id}'")
    return {model.params["checkpoint"]: model for model in found}


def test_the_best_checkpoint_is_one_whose_files_retention_keeps_and_pruned_models_say_so(uri: str, tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path), name="pruned")
    play_segment_0(campaign)
    mirror(campaign.ledger, uri=uri)
    play_segment_1(campaign, loss=4.5)
    released = {status.manifest.name for status in prune(campaign.ledger, keep_last=1, keep_every=0, is_dry_run=False)}

    result = mirror(campaign.ledger, uri=uri)

    name = f"pruned-{read_history(campaign.ledger).experiment_sha256[:8]}"
    best = mlflow.MlflowClient(uri).get_model_version_by_alias(name, "best").tags["prunella.checkpoint"]
    models = models_of(uri, result)
    assert best == "0000-02-0000"
    assert best not in released
    assert {name for name, model in models.items() if "prunella.pruned" in model.tags} == released & models.keys()
    assert "0000-00-0001" in released & models.keys()


def test_what_became_of_a_checkpoint_is_said_once(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = play(str(tmp_path), name="said-once")
    mirror(campaign.ledger, uri=uri)
    mark(campaign, "0000-01-0000", "revoked")
    asked: list[str] = []
    client = mlflow.MlflowClient
    monkeypatch.setattr(client, "set_logged_model_tags", _noting(client.set_logged_model_tags, asked))

    first = mirror(campaign.ledger, uri=uri)
    mirror(campaign.ledger, uri=uri)

    model = models_of(uri, first)["0000-01-0000"]
    assert model.tags["prunella.revoked"] == "loads no more"
    assert asked == [model.model_id]


def test_a_model_carries_the_digest_as_the_ledger_writes_it(uri: str, mirrored: tuple[Campaign, MirrorResult]) -> None:
    _, result = mirrored

    digests = {model.params["digest"] for model in models_of(uri, result).values()}

    assert digests == {DIGEST}


@pytest.mark.parametrize("may_delete", [True, False])
def test_a_half_made_model_is_removed_or_left_as_the_user_may_and_the_mirror_goes_on(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_delete: bool
) -> None:
    campaign = play(str(tmp_path), name=f"half-made-{int(may_delete)}")
    first = mirror(campaign.ledger, uri=uri)
    client = mlflow.MlflowClient(uri)
    client.create_logged_model(first.experiment_id, name="half-made", source_run_id=first.run_id)
    if not may_delete:
        monkeypatch.setattr(mlflow.MlflowClient, "delete_logged_model", _refuse)

    second = mirror(campaign.ledger, uri=uri)

    models = client.search_logged_models([first.experiment_id], f"source_run_id = '{first.run_id}'")
    assert (second.run_id, second.points_added) == (first.run_id, 0)
    assert [model.name for model in models if str(model.status) != "READY"] == ([] if may_delete else ["half-made"])


def _refuse(*_arguments: object) -> None:
    raise mlflow.exceptions.MlflowException("Permission denied", error_code=PERMISSION_DENIED)


def test_accuracy_belongs_to_the_checkpoint_that_was_evaluated(uri: str, mirrored: tuple[Campaign, MirrorResult]) -> None:
    _, result = mirrored
    client = mlflow.MlflowClient(uri)

    models = client.search_logged_models([result.experiment_id], f"source_run_id = '{result.run_id}'")

    found = {m.params["checkpoint"]: {metric.key: metric.value for metric in m.metrics or ()} for m in models}
    assert sorted(found) == ["0000-00-0001", "0000-01-0000", "0000-02-0000", "0001-00-0003"]
    assert found["0000-02-0000"]["eval/heldout_choice/acc"] == 0.41
    assert found["0001-00-0003"]["eval/heldout_choice/acc"] == 0.55
    assert found["0000-00-0001"] == {}


def test_the_table_of_incidents_has_one_row_each_after_two_mirrors(
    uri: str, mirrored: tuple[Campaign, MirrorResult], tmp_path: Path
) -> None:
    campaign, result = mirrored
    mirror(campaign.ledger, uri=uri)

    table = mlflow.MlflowClient(uri).load_table(result.experiment_id, "incidents.json", run_ids=[result.run_id])

    assert list(table["cause"]) == ["process_crash", "node_unhealthy", "checkpoint_invalid"]
    assert list(table["lost_steps"]) == [3, 0, 5]


def test_an_infinite_value_is_flagged_and_left_out(uri: str, mirrored: tuple[Campaign, MirrorResult]) -> None:
    _, result = mirrored

    series = history_of(uri, result.run_id)

    assert [step for step, _, _ in series["stability/non_finite"]] == [33]
    assert 33 not in [step for step, _, _ in series["stability/grad_norm"]]


def test_params_are_flat_and_the_incidents_are_tags_of_their_attempt(uri: str, mirrored: tuple[Campaign, MirrorResult]) -> None:
    _, result = mirrored
    client = mlflow.MlflowClient(uri)

    parent, crashed = client.get_run(result.run_id), client.get_run(result.attempt_run_ids[0])

    assert parent.data.params["model.d_model"] == "128"
    assert parent.data.params["heal.ceiling"] == "24"
    assert parent.inputs.dataset_inputs[0].dataset.digest == "f" * 36
    assert "complete, 2 of 2 segments" in parent.data.tags["mlflow.note.content"]
    assert crashed.data.tags["heal.causes"] == "process_crash"
    assert crashed.data.tags["prunella.superseded_steps"] == "11-13"
    assert crashed.info.status == "FAILED"


def test_a_report_is_attached_once(uri: str, mirrored: tuple[Campaign, MirrorResult], tmp_path: Path) -> None:
    campaign, result = mirrored
    report = tmp_path / "some-name.html"
    report.write_text("<p>hello</p>")

    mirror(campaign.ledger, uri=uri, report=report)

    names = [file.path for file in mlflow.MlflowClient(uri).list_artifacts(result.run_id)]
    assert sorted(names) == ["incidents.json", "report.html"]


def opened_by_somebody_else(uri: str) -> str:
    """A run that another system opened for us, in an MLflow experiment of its own."""
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name("theirs")
    beside = f"{uri.removeprefix('sqlite:///').rpartition('/')[0]}/theirs"  # MLflow's default is the current folder
    experiment_id = client.create_experiment("theirs", beside) if found is None else found.experiment_id
    return str(client.create_run(experiment_id, run_name="theirs").info.run_id)


def test_an_experiment_becomes_the_run_that_was_opened_for_it_and_stays_it(uri: str, tmp_path: Path) -> None:
    campaign = play(str(tmp_path), name="joined")
    theirs = opened_by_somebody_else(uri)

    first = mirror(campaign.ledger, uri=uri, join_run_id=theirs)
    second = mirror(campaign.ledger, uri=uri, known_run_id=first.run_id)

    assert (first.run_id, second.run_id, second.points_added) == (theirs, theirs, 0)
    assert history_of(uri, theirs)["train/loss"]


def test_an_experiment_that_has_a_run_leaves_its_address_in_the_one_opened_in_vain(uri: str, tmp_path: Path) -> None:
    campaign = play(str(tmp_path), name="known")
    own = mirror(campaign.ledger, uri=uri)
    theirs = opened_by_somebody_else(uri)

    result = mirror(campaign.ledger, uri=uri, join_run_id=theirs)

    assert (result.run_id, result.points_added) == (own.run_id, 0)
    assert mlflow.MlflowClient(uri).get_run(theirs).data.tags["prunella.run_id"] == own.run_id


def test_a_run_that_is_another_experiments_stays_that(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = opened_by_somebody_else(uri)
    first = play(str(tmp_path / "first"), name="first")
    mirror(first.ledger, uri=uri, join_run_id=theirs)

    second = mirror(play(str(tmp_path / "second"), name="second").ledger, uri=uri, join_run_id=theirs)

    assert second.run_id != theirs
    assert mlflow.MlflowClient(uri).get_run(theirs).data.tags["prunella.experiment"] == "first"
    assert f"MLFLOW_RUN_ID={theirs} reason=it is that of experiment 'first'" in caplog.text


def test_a_run_that_the_server_does_not_have_silences_nothing(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = play(str(tmp_path), name="misled")

    first = mirror(campaign.ledger, uri=uri, join_run_id="0" * 32)
    again = mirror(campaign.ledger, uri=uri, join_run_id="0" * 32)

    assert (again.run_id, again.points_added) == (first.run_id, 0)
    assert history_of(uri, first.run_id)["train/loss"]
    assert "has no such run" in caplog.text


def test_a_run_remembered_from_another_store_is_not_believed(uri: str, tmp_path: Path) -> None:
    campaign = play(str(tmp_path), name="moved")

    result = mirror(campaign.ledger, uri=uri, known_run_id="0" * 32)

    assert result.run_id != "0" * 32


def test_a_server_that_is_away_is_one_quick_error_without_its_password(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    started_s = time.monotonic()

    with pytest.raises(TrackingUnavailable, match="the ledger is whole") as caught:
        mirror(campaign.ledger, uri="http://someone:hunter2@127.0.0.1:9")

    assert time.monotonic() - started_s < 15
    assert "hunter2" not in str(caught.value)


def test_a_uri_is_shown_without_its_password() -> None:
    assert without_password("http://someone:secret@host:5000/x") == "http://host:5000/x"
    assert without_password("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"
