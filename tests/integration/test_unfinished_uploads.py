"""A writer that is killed in the middle of an upload leaves nothing for ever, and nobody's upload is aborted under his hands.

Real processes upload to real servers; `kill -9` comes while a part is on its way.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buckets import Bucket, big_file, set_in_environment
from fault_proxy import REFUSE, fault_proxy
from prunella import checkpoints
from prunella.ledger import Ledger
from prunella.orchestration.claim import SegmentRun
from prunella.orchestration.opening import open_attempt
from prunella.storage import S3Store
from radosgw import bucket_by
from unit import checkpoint_job as tiny
from waiting import wait_until

MIB = 2**20
PROGRAM = """
import sys
from pathlib import Path
from prunella.storage import open_patiently
open_patiently(sys.argv[1]).put_new_file(sys.argv[2], Path(sys.argv[3]))
"""


@pytest.fixture(scope="module", params=["moto", "radosgw"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with bucket_by(request.param) as made:
        yield made


@pytest.fixture
def ledger(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """An experiment with attempt 0 opened, under a prefix of its own."""
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    return tiny.make_experiment(f"{bucket.root}/{tmp_path.name}")


def key_of(ledger: Ledger, attempt: int) -> str:
    """Of a file of a candidate of that attempt."""
    return f"{ledger.checkpoint_prefix(f'0000-{attempt:02d}-0000')}/000002-shard.safetensors"


def unfinished(ledger: Ledger) -> list[str]:
    """Keys of the uploads that were begun and not ended."""
    return [key for key, _ in S3Store(ledger.store.root).unfinished("experiments")]


def parts(ledger: Ledger) -> list[Any]:
    """Parts that lie at the server for uploads that were not ended."""
    store = S3Store(ledger.store.root)
    found: list[Any] = []
    for key, upload in store.unfinished("experiments"):
        answer = store._client.list_parts(Bucket=store._bucket, Key=store.name_of(key), UploadId=upload.upload_id)
        found += answer.get("Parts", [])
    return found


def kill_amid_upload(bucket: Bucket, ledger: Ledger, folder: Path) -> None:
    """`kill -9` a process that uploads for attempt 0, once the server has some of its parts and not the others."""
    command = [sys.executable, "-c", PROGRAM, ledger.store.root, key_of(ledger, 0), str(big_file(folder, 40 * MIB))]
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        slow = ("partNumber=4", "partNumber=5")
        schedule.draw = lambda _, path: ("drip" if any(part in path for part in slow) else "", 0.0)  # type: ignore[method-assign]
        with set_in_environment({"AWS_ENDPOINT_URL_S3": address}):
            writer = subprocess.Popen(command)
        wait_until(lambda: len(parts(ledger)) > 0, "a part arrived", command=writer)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL


def take_token(ledger: Ledger) -> None:
    """Open attempt 1, as the orchestrator does."""
    run = SegmentRun(root=ledger.store.root, experiment=ledger.name, segment=0, run_index=0, run_id="r0", is_unattended=True)
    open_attempt(run, rung=1)


def prune(ledger: Ledger) -> None:
    """As the orchestrator does when a segment ends, after somebody else has opened attempt 1."""
    tiny.open_attempt(ledger, 1)
    checkpoints.prune(ledger, keep_last=1, keep_every=0, is_dry_run=False)


@pytest.mark.parametrize("act", [take_token, prune], ids=["next attempt", "prune"])
def test_an_upload_whose_writer_was_killed_is_aborted_once_a_newer_attempt_holds_the_token(
    bucket: Bucket, ledger: Ledger, tmp_path: Path, act: Callable[[Ledger], None]
) -> None:
    kill_amid_upload(bucket, ledger, tmp_path)
    left = unfinished(ledger)

    act(ledger)

    assert left == [key_of(ledger, 0)]
    assert (unfinished(ledger), parts(ledger)) == ([], [])


def test_an_upload_of_whoever_holds_the_token_is_never_aborted(ledger: Ledger) -> None:
    store = S3Store(ledger.store.root)
    tiny.open_attempt(ledger, 1)
    old, living, unknown = (key_of(ledger, attempt) for attempt in (0, 1, 2))
    uploads = {key: store.begin(key) for key in (old, living, unknown)}
    for key, upload in uploads.items():
        store.send_part(key, upload, 1, b"content")

    checkpoints.prune(ledger, keep_last=1, keep_every=0, is_dry_run=False)
    left = unfinished(ledger)
    store.commit(living, uploads[living])

    assert left == [living, unknown]
    assert store.get(living) == b"content"


def test_uploads_beside_the_experiment_are_left_alone(ledger: Ledger) -> None:
    store = S3Store(ledger.store.root)
    tiny.open_attempt(ledger, 1)
    others = [f"experiments/{ledger.name}-2/checkpoints/0000-00-0000/shard", f"experiments/{ledger.name}/other/0000-00-0000/x"]
    for key in others:
        store.begin(key)

    checkpoints.prune(ledger, keep_last=1, keep_every=0, is_dry_run=False)

    assert unfinished(ledger) == sorted(others)


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (403, "AccessDenied")])
def test_a_server_that_does_not_list_uploads_fails_nobody_and_is_told_of(
    bucket: Bucket, ledger: Ledger, caplog: pytest.LogCaptureFixture, status: int, code: str
) -> None:
    S3Store(ledger.store.root).begin(key_of(ledger, 0))
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        refusal = REFUSE.format(status, code)
        schedule.draw = lambda method, path: (  # type: ignore[method-assign]
            refusal if method == "GET" and "uploads" in path else "",
            0.0,
        )
        with set_in_environment({"AWS_ENDPOINT_URL_S3": address}):
            take_token(ledger)

    assert [opened.attempt for opened in ledger.attempts(0)] == [0, 1]
    assert unfinished(ledger) == [key_of(ledger, 0)]
    assert f"unfinished_uploads_left prefix={ledger.checkpoints_prefix}" in caplog.text
