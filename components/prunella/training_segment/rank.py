"""One rank from its first import to its last save: fix the arithmetic, join the others, build, load, train.

It decides nothing about the attempt. It trusts its job and what the reader and the checkpoint loader have proven.
"""

import gc
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from prunella import checkpoints
from prunella.checkpoints import CheckpointWriter, TrainingState
from prunella.config import Config
from prunella.data.manifest import TRAIN, load_manifest
from prunella.data.order import batch_for_step
from prunella.data.reader import TokenReader
from prunella.errors import CheckpointInvalid
from prunella.ledger import Ledger, open_ledger
from prunella.model.parallel import parallelize
from prunella.model.transformer import Transformer
from prunella.node_processes import own_device
from prunella.records import TrainRequest
from prunella.training_segment.batches import StepBatches
from prunella.training_segment.exits import Ending
from prunella.training_segment.heartbeat import Mark, Phase, Pulse
from prunella.training_segment.job import Job
from prunella.training_segment.loop import Loop, Model, train_steps
from prunella.training_segment.optimizer import build_optimizer
from prunella.training_segment.step_clock import now_ns

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class TerminationFlag:
    """Whether this process was sent SIGTERM: a request to finish the step, save and end, like the launcher's."""

    is_set: bool = False

    def listen(self) -> None:
        """Take SIGTERM from now on."""
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True


def train(job: Job, scratch: Path, pulse: Pulse, ending: Ending, *, rank: int, world_size: int) -> None:
    """Train the request's steps as rank `rank`; `ending` holds what came of it, also when this raises.

    Raises:
        PrunellaError: of the class that says what to heal.
    """
    config, request = job.config, job.request
    termination = TerminationFlag()
    termination.listen()
    fix_arithmetic(config)
    device = join()
    ledger = open_ledger(request.root, request.experiment, settings=config.storage)
    model = build(config, device, world_size)
    pulse.mark(Mark.BUILT, now_ns())
    pulse.beat(Phase.LOAD, step=request.first_step - 1)
    state = load_or_begin(ledger, request, config, model, rank=rank, world_size=world_size, ending=ending)
    pulse.mark(Mark.LOADED, now_ns())
    loop = assemble(job, scratch, ledger, model, device, pulse=pulse, is_terminated=lambda: termination.is_set)
    train_steps(loop, state, pulse, ending)
    dist.destroy_process_group()


def assemble(
    job: Job,
    scratch: Path,
    ledger: Ledger,
    model: Model,
    device: torch.device,
    *,
    pulse: Pulse,
    is_terminated: Callable[[], bool],
) -> Loop:
    """Everything the loop needs around the model. Raises DataCorrupt when the data set is not what was committed."""
    config, request = job.config, job.request
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dataset = load_manifest(ledger.store, request.dataset)
    reader = TokenReader(ledger.store, dataset, TRAIN)
    switch = ledger.fault_switch(segment=request.segment, attempt=request.attempt)
    return Loop(
        job=job,
        scratch=scratch,
        rank=rank,
        world_size=world_size,
        device=device,
        store=ledger.store,
        model=model,
        batches=StepBatches(config, reader, request.skipped, rank=rank, world_size=world_size),
        probe=checkpoints.probe_batch(ledger.store, dataset, config),
        writer=CheckpointWriter(
            ledger,
            request,
            config,
            rank=rank,
            world_size=world_size,
            scratch=scratch,
            switch=switch,
            on_sign=lambda is_agreeing: pulse.repeat(Phase.AGREE if is_agreeing else Phase.SAVE),
        ),
        switch=switch,
        is_terminated=is_terminated,
    )


def fix_arithmetic(config: Config) -> None:
    """Make results depend on inputs alone (DESIGN 4.11), and garbage collection on the step alone (FIELD 1)."""
    torch.set_num_threads(config.parallel.threads_per_rank)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(config.seed)
    gc.disable()


def join() -> torch.device:
    """Meet the other ranks; the device this one computes on.

    An accelerator each where this machine has enough of them for all ranks on it, else the CPU: nodes of one machine share
    its accelerators, and NCCL refuses two ranks on one.
    """
    index, devices = own_device()
    if torch.cuda.device_count() >= devices:
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
        return device
    dist.init_process_group("gloo")
    return torch.device("cpu")


def build(config: Config, device: torch.device, world_size: int) -> Model:
    """The model from the seed, spread over the ranks, and its optimizer."""
    transformer = Transformer(config.model)
    transformer.init_weights(config.seed)
    parallelize(transformer, config, world_size=world_size, device=device)
    return Model(transformer=transformer, optimizer=build_optimizer(transformer, config.optim))


def load_or_begin(
    ledger: Ledger, request: TrainRequest, config: Config, model: Model, *, rank: int, world_size: int, ending: Ending
) -> TrainingState:
    """The state to go on from: of the request's checkpoint, or of step 0.

    Raises:
        CheckpointInvalid: the checkpoint is damaged, foreign, or not of the step before the first one.
    """
    if request.resume is None:
        return TrainingState(
            step=request.first_step - 1,
            tokens=0,
            batch=batch_for_step(request.first_step, request.skipped),
            dataset=request.dataset,
            seed=config.seed,
            world_size=world_size,
            skipped=request.skipped,
        )
    state = checkpoints.load(ledger, request.resume, model.transformer, model.optimizer)
    _require_continuation(state, request)
    if not checkpoints.restore_rng(state, rank=rank, world_size=world_size):
        warning = f"resumed at world size {world_size} from {state.world_size}: bitwise equality is not promised"
        ending.warnings.append(warning)
        logger.warning("world_size_changed before=%s now=%s", state.world_size, world_size)
    return state


def _require_continuation(state: TrainingState, request: TrainRequest) -> None:
    """A missing or foreign data position is an error, never a silent restart of the data (R12)."""
    assert request.resume is not None
    expected = {
        "step": (request.first_step - 1, state.step),
        "next batch": (batch_for_step(state.step + 1, state.skipped), state.batch),
        "data set": (request.dataset, state.dataset),
    }
    for what, (wanted, found) in expected.items():
        if wanted != found:
            raise CheckpointInvalid(
                f"checkpoint {request.resume.name}: expected {what} {wanted!r}, found {found!r}; "
                "resume from another checkpoint: `prunella checkpoint list` shows them"
            )
