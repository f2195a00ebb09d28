"""Kubeflow is told how far training is, by its own SDK over HTTP; and whatever its server does, training goes on."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from prunella.records import NodeRef, Stage, TrainRequest
from prunella.training_segment import kubeflow_progress
from prunella.training_segment.kubeflow_progress import ADDRESS_VARIABLE, progress_told
from prunella.training_segment.step_log import StepLog
from unit.training_segment.test_step_log import record
from waiting import wait_until

REQUEST = TrainRequest(
    stage=Stage.TRAINING_SEGMENT,
    root="/r",
    experiment="demo",
    config_digest="d" * 64,
    output="out.json",
    nodes=(NodeRef(name="node-0"),),
    first_step=41,
    last_step=80,
    total_steps=200,
    dataset="f" * 16,
)


class Trainer:
    """Kubeflow Trainer's status server, as far as we speak to it. `answer` is its status code."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.answer = 200


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    trainer = Trainer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            trainer.told.append((self.headers["Authorization"], body))
            self.send_response(trainer.answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    (tmp_path / "token").write_text("a-token\n")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(ADDRESS_VARIABLE, f"http://127.0.0.1:{server.server_port}/status")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.setattr(kubeflow_progress, "_INTERVAL_S", 0.01)
    yield trainer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubeflow's SDK, which has told nothing yet."""
    pytest.importorskip("kubeflow.trainer", reason="kubeflow is in requirements/dev.lock: make")
    monkeypatch.setattr("kubeflow.trainer.backends.kubernetes.utils._last_update_time", 0.0)


@pytest.fixture
def steps(tmp_path: Path) -> StepLog:
    """An attempt whose step 60 of 41 to 80 is done."""
    log = StepLog(tmp_path, last_step=80)
    log.append(record(60))
    return log


@pytest.mark.usefixtures("sdk", "steps")
def test_kubeflow_is_told_how_far_the_segment_is(trainer: Trainer, tmp_path: Path) -> None:
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainerStatus

    with progress_told(REQUEST, tmp_path):
        wait_until(lambda: trainer.told, "something was told", timeout_s=30.0)

    (bearer, body), *_ = trainer.told
    status = TrainerV1alpha1TrainerStatus.from_dict(body["trainerStatus"])
    assert bearer == "Bearer a-token"
    assert status is not None
    assert status.progress_percentage == 50
    assert status.estimated_remaining_seconds == 0
    assert {metric.name: metric.value for metric in status.metrics or ()} == {
        "step": "60",
        "train/loss": "2.5",
        "perf/tokens_per_s": "800.0",
    }


@pytest.mark.usefixtures("sdk", "steps")
@pytest.mark.parametrize("answer", [403, 500])
def test_a_server_that_says_no_is_no_concern_of_training(trainer: Trainer, tmp_path: Path, answer: int) -> None:
    trainer.answer = answer

    with progress_told(REQUEST, tmp_path):
        wait_until(lambda: trainer.told, "something was told", timeout_s=30.0)

    assert trainer.told


@pytest.mark.usefixtures("sdk")
def test_before_the_first_step_there_is_nothing_to_tell(trainer: Trainer, tmp_path: Path) -> None:
    with progress_told(REQUEST, tmp_path):
        time.sleep(0.1)

    assert trainer.told == []


def test_what_fails_in_training_is_what_is_seen(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubeflow.trainer", None)

    with pytest.raises(KeyError), progress_told(REQUEST, tmp_path):
        raise KeyError


def test_without_the_sdk_a_warning_says_what_to_install(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "kubeflow.trainer", None)

    with progress_told(REQUEST, tmp_path):
        pass

    assert "install prunella[trainer]" in caplog.text


def test_outside_a_train_job_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)

    with progress_told(REQUEST, tmp_path):
        assert [thread.name for thread in threading.enumerate() if thread.name == "kubeflow-progress"] == []
