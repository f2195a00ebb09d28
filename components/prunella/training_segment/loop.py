"""The training loop of one rank: data, forward, backward, one fused reduction, guard, optimizer step, record, candidate.

All ranks run the same passes and collectives in the same order; every decision (stop, refuse the step, save) is made from
reduced numbers or step numbers alone, so all ranks make it alike. A step counts once its record is written, and its record
is written only while the newest durable candidate is at most `max_unsaved_steps` behind.

Shapes: B sequences, T positions, L expert layers, E experts.
"""

import dataclasses
import gc
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from prunella.checkpoints import CheckpointWriter, TrainingState, probe_loss
from prunella.faults import FaultSwitch
from prunella.model import accounting
from prunella.model.losses import step_loss
from prunella.model.parallel import clip_, grad_norm
from prunella.model.timing import clock as communication_clock
from prunella.model.transformer import Transformer
from prunella.records import Outage, StepRecord
from prunella.storage import RetryingStore, Store
from prunella.training_segment.batches import StepBatches
from prunella.training_segment.exits import Ending
from prunella.training_segment.fused_sums import GlobalSums, LocalSums, pack, unpack
from prunella.training_segment.guards import GradientGuard, require_finite
from prunella.training_segment.heartbeat import Mark, Phase, Pulse
from prunella.training_segment.job import Job, is_stop_asked
from prunella.training_segment.optimizer import set_learning_rate
from prunella.training_segment.schedule import learning_rate
from prunella.training_segment.step_clock import StepClock, StepTime, now_ns
from prunella.training_segment.step_log import StepLog

logger = logging.getLogger(__name__)

#: Steps between garbage collections, which all ranks make at once. Source: FIELD 1 (collect at fixed steps on all ranks);
#: the number is our own choice 2026-11, not tuned.
_COLLECT_EVERY = 50
#: Losses kept with a checkpoint for detectors of spikes (R4). Source: own choice 2026-11.
_LOSS_HISTORY = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The sharded model and its optimizer."""

    transformer: Transformer
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """Everything a rank trains with. `probe` is int64 (N, T + 1); `is_terminated` tells of a SIGTERM to this process."""

    job: Job
    scratch: Path
    rank: int
    world_size: int
    device: torch.device
    store: Store
    model: Model
    batches: StepBatches
    probe: Tensor
    writer: CheckpointWriter
    switch: FaultSwitch | None
    is_terminated: Callable[[], bool]

    @property
    def global_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.job.config.batch.global_sequences * self.job.config.model.seq_len


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What an optimizer step came to."""

    sums: GlobalSums
    grad_norm: float
    learning_rate: float


def train_steps(loop: Loop, state: TrainingState, pulse: Pulse, ending: Ending) -> None:
    """Train from the step after `state` to the request's last, or until all ranks agree to stop.

    Raises:
        NonFiniteStep: on every rank alike, before the optimizer step.
        PrunellaError: a candidate could not be saved, a shard is damaged, the store is away.
    """
    guard = GradientGuard(loop.model.transformer.final_norm, loop.device)
    log = StepLog(loop.scratch, last_step=loop.job.request.last_step) if loop.rank == 0 else None
    gc.collect()
    gc.freeze()
    step_clock = StepClock(start_ns := now_ns())
    pulse.mark(Mark.FIRST_STEP, start_ns)
    try:
        for step in range(loop.job.request.first_step, loop.job.request.last_step + 1):
            pulse.beat(Phase.START, step=step)
            trained = _train_step(loop, guard, pulse, step_clock, step)
            pulse.beat(Phase.SAVE)
            state = _advanced(state, loop, trained, step)
            _count_step(loop, trained, step_clock, log, pulse, step)
            ending.last_step, ending.is_stopped = step, trained.sums.is_stop_asked
            _note_outages(loop.store, ending, step)
            if _is_candidate_due(loop, step) or ending.is_stopped:
                with step_clock.measure("checkpoint"):
                    _save(loop, state, log)
            if ending.is_stopped:
                break
        ending.is_stopped = ending.is_stopped and ending.last_step < loop.job.request.last_step
        loop.writer.wait()
        _note_outages(loop.store, ending, ending.last_step)
        pulse.mark(Mark.SAVED, now_ns())
        pulse.beat(Phase.END)
    finally:
        loop.writer.close()
        if log is not None:
            log.close()


# ------------------------------------------------------------------------------------------------ one step


def _train_step(loop: Loop, guard: GradientGuard, pulse: Pulse, step_clock: StepClock, step: int) -> Trained:
    """One optimizer step, or NonFiniteStep on every rank and untouched weights."""
    guard.begin_step(is_poisoned=loop.switch is not None and loop.switch.before_step(rank=loop.rank, step=step))
    local = _forward_backward(loop, pulse, step_clock, step)
    pulse.beat(Phase.REDUCE)
    sums = _reduce(loop, local, guard)
    norm = grad_norm(loop.model.transformer)
    require_finite(sums, float(norm), step=step)
    pulse.beat(Phase.OPTIMIZER)
    request, optim = loop.job.request, loop.job.config.optim
    rate = learning_rate(optim, step=step, total_steps=request.total_steps)
    clip_(loop.model.transformer, norm, optim.grad_clip_norm)
    set_learning_rate(loop.model.optimizer, rate)
    loop.model.optimizer.step()
    loop.model.optimizer.zero_grad(set_to_none=True)
    loop.model.transformer.update_routing(sums.counts_LE, tokens=sums.tokens)
    if step % _COLLECT_EVERY == 0:
        gc.collect()
    return Trained(sums=sums, grad_norm=float(norm), learning_rate=rate)


def _forward_backward(loop: Loop, pulse: Pulse, step_clock: StepClock, step: int) -> LocalSums:
    """All micro-batches of this rank; gradients add up, and so do the sums."""
    model = loop.model.transformer
    local = LocalSums(layers=len(model.routers()), experts=loop.job.config.model.n_experts, device=loop.device)
    for index in range(loop.batches.split.micro_batches):
        pulse.beat(Phase.DATA)
        with step_clock.measure("data"):
            tokens_BT, targets_BT = (part.to(loop.device) for part in loop.batches.micro_batch(step, index))
        pulse.beat(Phase.FORWARD)
        output = model(tokens_BT)
        loss = step_loss(output, targets_BT, model, tokens_global=loop.global_tokens)
        pulse.beat(Phase.BACKWARD)
        loss.total.backward()  # type: ignore[no-untyped-call]
        local.add(tokens=targets_BT.numel(), ce_sum=loss.ce_sum, z_sum=loss.z_sum, router=output.router)
    return local


def _reduce(loop: Loop, local: LocalSums, guard: GradientGuard) -> GlobalSums:
    is_stop_wanted = loop.is_terminated() or is_stop_asked(loop.scratch)
    vector = pack(
        local,
        rank=loop.rank,
        world_size=loop.world_size,
        is_non_finite=guard.is_non_finite,
        is_stop_asked=is_stop_wanted,
    )
    with communication_clock.waiting():
        dist.all_reduce(vector)
    sums = unpack(vector, world_size=loop.world_size, layers=local.layers, experts=local.experts)
    assert sums.tokens == loop.global_tokens, f"the ranks trained on {sums.tokens} tokens of {loop.global_tokens}"
    return sums


# ------------------------------------------------------------------------------------------------ what remains of a step


def _count_step(loop: Loop, trained: Trained, step_clock: StepClock, log: StepLog | None, pulse: Pulse, step: int) -> None:
    """Wait until this step may count, then write its record. The next step's time begins where this one's ends."""
    step_clock.add_communication(communication_clock.take())
    with step_clock.measure("checkpoint"):
        loop.writer.wait_if_needed(step)
    time = step_clock.finish(now_ns())
    pulse.last_step_ns = time.end_ns - time.start_ns
    if log is None:
        return
    record = _record(loop, trained, time, step)
    log.append(record)
    logger.info(
        "step_finished step=%s loss_nats=%.4f grad_norm=%.3f tokens_per_s=%.0f",
        step,
        record.loss_nats,
        record.grad_norm,
        record.tokens_per_s,
    )


def _record(loop: Loop, trained: Trained, time: StepTime, step: int) -> StepRecord:
    sums, config = trained.sums, loop.job.config
    tokens_per_s = sums.tokens / ((time.end_ns - time.start_ns) / 1e9)
    device_name = torch.cuda.get_device_name(loop.device) if loop.device.type == "cuda" else "cpu"
    return StepRecord(
        step=step,
        start_ns=time.start_ns,
        end_ns=time.end_ns,
        data_ns=time.data_ns,
        compute_ns=time.compute_ns,
        communication_ns=time.communication_ns,
        checkpoint_ns=time.checkpoint_ns,
        loss_nats=sums.loss_nats,
        grad_norm=trained.grad_norm,
        learning_rate=trained.learning_rate,
        tokens=sums.tokens,
        tokens_per_s=tokens_per_s,
        mfu=accounting.mfu(config, tokens_per_s=tokens_per_s, devices=loop.world_size, device_name=device_name),
        load_balance_loss=sums.load_balance,
        router_z_loss=sums.router_z_loss,
        tokens_per_expert=tuple(tuple(counts) for counts in sums.counts_LE.tolist()),
        batch=loop.batches.batch_number(step),
    )


def _advanced(state: TrainingState, loop: Loop, trained: Trained, step: int) -> TrainingState:
    """The state after a step; `batch` is the next one of the data order."""
    before = (state.detector or {}).get("losses", ())
    losses = deque(before if isinstance(before, tuple) else (before,), maxlen=_LOSS_HISTORY)
    losses.append(trained.sums.loss_nats)
    return dataclasses.replace(
        state,
        step=step,
        tokens=state.tokens + trained.sums.tokens,
        batch=loop.batches.batch_number(step + 1),
        world_size=loop.world_size,
        skipped=loop.job.request.skipped,
        detector={"losses": tuple(losses)},
        rng=(),
    )


def _is_candidate_due(loop: Loop, step: int) -> bool:
    return step % loop.job.config.checkpoint.interval_steps == 0 or step == loop.job.request.last_step


def _save(loop: Loop, state: TrainingState, log: StepLog | None) -> None:
    """Start to save a candidate; its writing goes on beside the next step."""
    loss_nats = probe_loss(loop.model.transformer, loop.probe)
    communication_clock.take()  # the probe's waits are part of the checkpoint's time
    loop.writer.save(
        state.step, loop.model.transformer, loop.model.optimizer, state, loss_nats, log.path if log is not None else None
    )


def _note_outages(store: Store, ending: Ending, step: int) -> None:
    """Remember each time this rank waited for the store, with the step it was seen after."""
    waits = store.waits if isinstance(store, RetryingStore) else []
    for wait in waits[len(ending.outages) :]:
        ending.outages.append(Outage(start_ns=wait.start_ns, end_ns=wait.end_ns, step=step, message=wait.message))
