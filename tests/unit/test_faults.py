"""A fault is understood or refused, acts once, and acts for real."""

import os
import signal
import subprocess
import sys
import time

import pytest

from prunella import faults
from prunella.config import Config
from prunella.errors import ConfigError, StorageUnavailable
from prunella.faults import Fault, FaultSwitch, OutageStore
from prunella.records import NodeRef
from prunella.storage import FolderStore

FLEET = (NodeRef(name="node-0", devices=2), NodeRef(name="node-1"), NodeRef(name="node-2"))
CONFIG = Config(segments=2, steps_per_segment=25, nodes=2)

_CHILD = """
import sys
from prunella import faults
from prunella.storage import FolderStore
switch = faults.FaultSwitch(FolderStore(sys.argv[1]), "demo", (faults.parse(sys.argv[2]),))
for step in (1, 2, 3):
    print(step, switch.before_step(rank=1, step=step), flush=True)
"""


def _switch(store: FolderStore, *specs: str) -> FaultSwitch:
    return FaultSwitch(store, "demo", tuple(faults.parse(spec) for spec in specs))


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kill:rank=1,step=30", {"kind": "kill", "rank": 1, "step": 30}),
        ("hang:step=30,rank=1", {"kind": "hang", "rank": 1, "step": 30}),
        ("nan:rank=0,step=1", {"kind": "nan", "rank": 0, "step": 1}),
        ("bad-node:node=node-1,segment=0", {"kind": "bad-node", "node": "node-1", "segment": 0}),
        ("corrupt-checkpoint:step=20", {"kind": "corrupt-checkpoint", "step": 20}),
        ("truncate-shard:shard=0", {"kind": "truncate-shard", "shard": 0}),
        ("storage-down:seconds=2.5", {"kind": "storage-down", "seconds": 2.5}),
        ("storage-down:seconds=20,step=3", {"kind": "storage-down", "seconds": 20.0, "step": 3}),
    ],
)
def test_every_kind_of_fault_is_read(spec: str, expected: dict[str, object]) -> None:
    assert faults.parse(spec) == Fault(spec=spec, **expected)  # type: ignore[arg-type]


def test_every_kind_says_what_it_does() -> None:
    assert all(required and what for required, _, what in faults.KINDS.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown fault ''"),
        ("kil:rank=1,step=3", "unknown fault 'kil'; did you mean 'kill'?; see `prunella fault list`"),
        ("kill", "parameter 'rank' is missing; expected kill:rank=...,step=..."),
        ("kill:rank=1", "parameter 'step' is missing"),
        ("kill:rank=1,step=3,node=x", "found 'node=x'"),
        ("kill:rank=1,step", "found 'step'"),
        ("kill:rank=one,step=3", "rank must be a number, found 'one'"),
        ("kill:rank=1,step=1.5", "step must be a number, found '1.5'"),
        ("kill:rank=-1,step=3", "rank must be finite and not negative"),
        ("storage-down:seconds=nan", "seconds must be finite and not negative, found 'nan'"),
        ("storage-down:seconds=inf", "seconds must be finite and not negative, found 'inf'"),
        ("storage-down:step=3", "parameter 'seconds' is missing; expected storage-down:seconds=...,[step=...]"),
    ],
)
def test_a_fault_that_cannot_be_meant_is_refused_with_its_form(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        faults.parse(spec)

    assert str(caught.value).startswith(f"--fault {spec}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["kill:rank=2,step=50", "corrupt-checkpoint:step=20", "corrupt-checkpoint:step=25", "bad-node:node=node-2,segment=1"],
)
def test_a_possible_fault_is_let_through(spec: str) -> None:
    faults.check_possible(faults.parse(spec), CONFIG, FLEET)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kill:rank=3,step=1", "there is no rank 3; ranks are 0 to 2"),
        ("kill:rank=0,step=0", "there is no step 0; steps are 1 to 50"),
        ("hang:rank=0,step=51", "there is no step 51"),
        ("storage-down:seconds=1,step=51", "there is no step 51"),
        ("bad-node:node=node-0,segment=2", "there is no segment 2; segments are 0 to 1"),
        ("bad-node:node=node-9,segment=0", "there is no node 'node-9'; the fleet has node-0, node-1, node-2"),
        ("corrupt-checkpoint:step=21", "no candidate is written at step 21; they are written every 10 steps"),
    ],
)
def test_an_impossible_fault_is_refused_with_what_is_possible(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        faults.check_possible(faults.parse(spec), CONFIG, FLEET)

    assert message in str(caught.value)


# ------------------------------------------------------------------------------------------------ acting


def test_a_fault_fires_once_whoever_asks(store: FolderStore) -> None:
    fault = faults.parse("nan:rank=1,step=2")
    first, second = _switch(store, fault.spec), _switch(store, fault.spec)

    answers = [first.fire(fault, step=2), second.fire(fault, step=2), first.fire(fault, step=2)]
    firing = second.fired(fault)

    assert answers == [True, False, False]
    assert firing is not None
    assert (firing.spec, firing.step) == (fault.spec, 2)


def test_two_faults_of_one_kind_fire_apart(store: FolderStore) -> None:
    switch = _switch(store, "nan:rank=1,step=2", "nan:rank=1,step=3")

    poisoned = [switch.before_step(rank=1, step=step) for step in (1, 2, 3, 2, 3)]

    assert poisoned == [False, True, True, False, False]


def test_a_fault_is_for_its_own_rank_only(store: FolderStore) -> None:
    switch = _switch(store, "nan:rank=1,step=2")

    assert not switch.before_step(rank=0, step=2)
    assert switch.fired(switch.of_kind("nan")[0]) is None


def test_kill_kills_the_rank_before_its_step_and_not_again(store: FolderStore) -> None:
    command = [sys.executable, "-c", _CHILD, store.root, "kill:rank=1,step=2"]

    broken = subprocess.run(command, capture_output=True, text=True, check=False)
    restarted = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (broken.returncode, broken.stdout) == (-signal.SIGKILL, "1 False\n")
    assert (restarted.returncode, restarted.stdout) == (0, "1 False\n2 False\n3 False\n")


def test_hang_stops_the_rank_before_its_step(store: FolderStore) -> None:
    command = [sys.executable, "-c", _CHILD, store.root, "hang:rank=1,step=2"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        process.kill()
        output, _ = process.communicate()

    assert os.WIFSTOPPED(status)
    assert output == "1 False\n"


@pytest.mark.parametrize("size_bytes", [1, 2, 4097])
def test_flip_byte_changes_exactly_one_byte(store: FolderStore, size_bytes: int) -> None:
    before = os.urandom(size_bytes)
    store.put_new("shard", before)

    faults.flip_byte(store, "shard")
    after = store.get("shard")

    assert len(after) == size_bytes
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


# ------------------------------------------------------------------------------------------------ the outage


def test_the_store_answers_nothing_while_the_outage_lasts_and_again_after(store: FolderStore, root: str) -> None:
    store.put_new("a", b"x")
    switch = _switch(store, "storage-down:seconds=3600,step=2")
    down = OutageStore(store, switch)
    content_before = down.get("a")

    switch.before_step(rank=0, step=2)

    assert content_before == b"x"
    for call in (lambda: down.get("a"), lambda: down.exists("a"), lambda: down.put_new("b", b""), lambda: down.list("a")):
        with pytest.raises(StorageUnavailable, match=r"out of reach \(fault storage-down"):
            call()
    assert store.list("experiments/demo/faults")[0].startswith("storage-down-")


def test_the_outage_ends_by_itself(store: FolderStore, root: str) -> None:
    store.put_new("a", b"x")
    switch = _switch(store, "storage-down:seconds=0.05")
    down = OutageStore(store, switch)
    switch.before_step(rank=0, step=1)
    firing = switch.fired(switch.of_kind("storage-down")[0])
    assert firing is not None

    while time.time_ns() < firing.at_ns + 5e7:
        os.sched_yield()

    assert down.get("a") == b"x"
    assert not switch.before_step(rank=0, step=2)
    assert switch.fired(switch.of_kind("storage-down")[0]) == firing
