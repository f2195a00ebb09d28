"""The training segment: one attempt to train optimizer steps `first_step` to `last_step` on the nodes of the request.

This is the launcher. It starts one torchrun agent a node, watches heartbeats, exit notes, processes, its token and the clock,
and ends everything at the first sign of trouble. It trusts what ranks wrote and what the kernel says, never an agent's exit
code. It never trains, never repairs and never decides what happens next: it says what happened. It needs no torch itself.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunella.checkpoint_metrics import ship_metrics
from prunella.config import Config
from prunella.errors import Cause, Fenced, StorageError
from prunella.ledger import Ledger, open_ledger
from prunella.node_pods import reached
from prunella.node_processes import NodeLauncher, NodeProcess, kill_groups
from prunella.records import (
    CheckpointManifest,
    Failure,
    FileEntry,
    Outage,
    Stage,
    StopReason,
    TrainRecord,
    TrainRequest,
    Verdict,
)
from prunella.scratch import attempt_scratch
from prunella.training_segment.agents import end_ranks, log_tail, start_agents
from prunella.training_segment.culprit import Blame, RankSeen, blame, rank_exits
from prunella.training_segment.job import SHARED, STEPS_FILE, Job, prepare_scratch, rank_nodes
from prunella.training_segment.kubeflow_progress import progress_told
from prunella.training_segment.spans import Moments, spans_of
from prunella.training_segment.split import split_batch
from prunella.training_segment.step_log import read_last
from prunella.training_segment.watch import StopRequest, Watch, Watched, token_check

logger = logging.getLogger(__name__)


def run(config: Config, request: TrainRequest) -> TrainRecord:
    """Train the segment, and say what came of it.

    Raises:
        ConfigError: the global batch cannot be divided over the ranks. Nothing was started.
        Fenced: a newer attempt holds the token. Nothing is running any more.
        StorageUnavailable: the ledger did not answer before the start or after the end.
    """
    scratch = attempt_scratch(request.root, request.experiment, request.segment, request.attempt, opened_ns=request.opened_ns)
    with reached(config, request, scratch, SHARED) as launcher:
        return _run(config, request, scratch, launcher)


def _run(config: Config, request: TrainRequest, scratch: Path, launcher: NodeLauncher) -> TrainRecord:
    started_ns = time.time_ns()
    ledger = open_ledger(request.root, request.experiment, settings=config.storage)
    split_batch(config.batch, len(rank_nodes(request.nodes)))
    if request.first_step > request.last_step:
        return _nothing_to_train(request, started_ns)
    prepare_scratch(scratch, Job(config=config, request=request, launched_ns=started_ns))
    watched = _train(config, request, scratch, launcher, started_ns)
    committed = ledger.candidates(request.segment, request.attempt)
    shipped = _ship_rest(ledger, request, scratch, committed)
    return _record(request, scratch, watched, committed, shipped, started_ns)


def _nothing_to_train(request: TrainRequest, started_ns: int) -> TrainRecord:
    """The checkpoint that this attempt resumes from holds the last step already."""
    return TrainRecord(
        stage=Stage.TRAINING_SEGMENT,
        verdict=Verdict.ACCEPTED,
        started_ns=started_ns,
        ended_ns=time.time_ns(),
        stopped_by=StopReason.END,
        first_step=request.first_step,
        last_step=request.last_step,
        candidates=0,
        world_size=len(rank_nodes(request.nodes)),
        exits=(),
    )


def _train(config: Config, request: TrainRequest, scratch: Path, launcher: NodeLauncher, started_ns: int) -> Watched:
    """Run the ranks until they ended or had to be ended; when this returns or raises, none of them lives."""
    impatient = dataclasses.replace(config.storage, retry_s=0.0)
    check_token = token_check(open_ledger(request.root, request.experiment, settings=impatient), request)
    stop = StopRequest(scratch)
    with stop.on_sigterm(), progress_told(request, scratch), _agents(config, request, scratch, launcher) as agents:
        logger.info("ranks_launched nodes=%s world_size=%s", len(agents), len(rank_nodes(request.nodes)))
        watch = Watch(config, request, agents, scratch, launcher=launcher, launched_ns=started_ns, check_token=check_token)
        watched = watch.until_over(stop)
    logger.info("ranks_gone stopped_by=%s", watched.stopped_by)
    return watched


@contextmanager
def _agents(config: Config, request: TrainRequest, scratch: Path, launcher: NodeLauncher) -> Iterator[list[NodeProcess]]:
    """The agents, for the time of the block. An exit note is a rank's last act, so nothing is lost by killing what is left."""
    agents = start_agents(config, request.nodes, scratch, launcher)
    try:
        yield agents
    finally:
        kill_groups(agents)
        end_ranks(scratch, [rank for rank, node in enumerate(rank_nodes(request.nodes)) if launcher.is_here(node)])


def _ship_rest(
    ledger: Ledger, request: TrainRequest, scratch: Path, committed: list[CheckpointManifest]
) -> tuple[tuple[FileEntry, ...], tuple[str, ...]]:
    """Ship step records that no committed candidate names: the chunks, and warnings.

    Losing them costs a piece of a curve, not the attempt.
    """
    last = read_last(scratch)
    if last is None:
        return (), ()
    first_step = committed[-1].step + 1 if committed else request.first_step
    try:
        entry = ship_metrics(ledger, request, scratch / STEPS_FILE, first_step=first_step, last_step=last.step)
    except StorageError as error:
        logger.warning("metrics_not_shipped error=%s", error)
        return (), (f"step records after the last candidate were not shipped: {error}",)
    return ((entry,) if entry else ()), ()


# ------------------------------------------------------------------------------------------------ what came of it


def _record(
    request: TrainRequest,
    scratch: Path,
    watched: Watched,
    committed: list[CheckpointManifest],
    shipped: tuple[tuple[FileEntry, ...], tuple[str, ...]],
    started_ns: int,
) -> TrainRecord:
    last = read_last(scratch)
    last_step = _last_step(watched, committed, last.step if last else request.first_step - 1)
    trouble = _trouble(request, watched, committed, last_step, scratch, started_ns)
    if trouble is not None and trouble.failure.cause is Cause.FENCED:
        raise Fenced(trouble.failure.message)
    steps_end_ns = last.end_ns if last else None
    fault_ns = max(trouble.fault_ns, steps_end_ns or 0) if trouble else None
    ended_ns = time.time_ns()
    moments = Moments(
        started_ns=started_ns,
        marks=_marks(watched),
        steps_end_ns=steps_end_ns,
        ended_ns=ended_ns,
        fault_ns=fault_ns,
        detected_ns=watched.detected_ns if trouble else None,
    )
    return TrainRecord(
        stage=Stage.TRAINING_SEGMENT,
        verdict=Verdict.REJECTED if trouble else Verdict.ACCEPTED,
        started_ns=started_ns,
        ended_ns=ended_ns,
        failure=trouble.failure if trouble else None,
        spans=spans_of(moments),
        stopped_by=StopReason.FAILURE if trouble else watched.stopped_by,
        first_step=request.first_step,
        last_step=last_step,
        candidates=len(committed),
        world_size=len(watched.seen),
        exits=rank_exits(watched.seen, launched_ns=started_ns),
        metrics=shipped[0],
        outages=_outages(watched.seen),
        warnings=_warnings(watched.seen) + shipped[1] + (() if trouble else _interruption(request, watched, last_step)),
        fault_ns=fault_ns,
    )


def _last_step(watched: Watched, committed: list[CheckpointManifest], last_logged: int) -> int:
    """Of a run that was stopped: the last step that is kept. Of a failed one: the last step that finished."""
    notes = [rank.note for rank in watched.seen if rank.note is not None]
    if watched.stopped_by is StopReason.FAILURE:
        return last_logged
    if len(notes) == len(watched.seen):
        return min(note.last_step for note in notes)
    return committed[-1].step if committed else last_logged


def _trouble(
    request: TrainRequest,
    watched: Watched,
    committed: list[CheckpointManifest],
    last_step: int,
    scratch: Path,
    started_ns: int,
) -> Blame | None:
    """What keeps this attempt from being accepted: a failure, or an end without a committed candidate."""
    if watched.stopped_by is StopReason.FAILURE:
        tails = {node.name: log_tail(scratch, node) for node in request.nodes}
        return blame(watched.seen, hang=watched.hang, launched_ns=started_ns, tails=tails)
    if last_step < request.first_step or (committed and committed[-1].step == last_step):
        return None
    found = f"step {committed[-1].step}" if committed else "none"
    message = (
        f"training stopped ({watched.stopped_by}) after step {last_step}, but the newest committed candidate is of {found}; "
        f"what was trained beyond it is lost: {_why_unsaved(watched)}"
    )
    return Blame(failure=Failure(cause=Cause.UNKNOWN, message=message, step=last_step), fault_ns=watched.detected_ns)


def _why_unsaved(watched: Watched) -> str:
    if all(rank.note is not None for rank in watched.seen):
        return "look at the save's error in the node log"
    return "its ranks had not ended when training.grace_s was over; raise that if a step and its save take longer"


def _interruption(request: TrainRequest, watched: Watched, last_step: int) -> tuple[str, ...]:
    """What there is to say of a stop that came before there was anything to save."""
    if last_step >= request.first_step:
        return ()
    return (
        f"training was stopped ({watched.stopped_by}) before its first step, {request.first_step}, had finished: nothing was "
        "trained and nothing is lost; the next attempt begins where this one did",
    )


def _marks(watched: Watched) -> dict[str, int]:
    """Rank 0 speaks for all: its marks lie behind collectives that all ranks were in."""
    beat = watched.seen[0].heartbeat
    return dict(beat.marks) if beat else {}


def _outages(seen: tuple[RankSeen, ...]) -> tuple[Outage, ...]:
    return seen[0].note.outages if seen[0].note else ()


def _warnings(seen: tuple[RankSeen, ...]) -> tuple[str, ...]:
    """What ranks warned of, each once."""
    return tuple(dict.fromkeys(warning for rank in seen if rank.note for warning in rank.note.warnings))
