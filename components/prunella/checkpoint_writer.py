"""Asynchronous sharded saves, and the commit that makes a candidate exist.

`save` copies the tensors of this step and returns; a thread of each rank then writes its shards as safetensors, uploads
them with their sha256, and rank 0 ships the step records, looks at the token and writes the manifest last. Training is
never ahead of the last durable candidate by more than `checkpoint.max_unsaved_steps`.

All ranks call every method with the same step in the same order; all of them see a save succeed or all see the same error.

A save takes as long as the store takes, and nobody knows how long that is. So whoever waits for one is told of its signs of
life: silence is then a sign that it is stuck.
"""

import dataclasses
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded
from torch.optim import Optimizer

from prunella import codec, faults
from prunella.checkpoint_agreement import agree, new_group
from prunella.checkpoint_metrics import ship_metrics
from prunella.checkpoint_state import RngState, TrainingState, capture_rng, logical_tensors, stage
from prunella.config import Config, OnSaveFailure
from prunella.errors import ConfigError, Fenced, PrunellaError
from prunella.faults import FaultSwitch
from prunella.ledger import Ledger
from prunella.records import CheckpointManifest, FileEntry, TrainRequest, to_bytes

logger = logging.getLogger(__name__)

#: Saves of one candidate under `on_save_failure = "retry"`. Source: own choice 2026-11; a storage call is retried inside each.
SAVE_TRIES = 3
#: How often a save that is waited for is looked at, in seconds. Source: own choice 2026-11: a fraction of any limit on silence.
LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Save:
    """A staged candidate on its way to the store."""

    step: int
    tensors: dict[str, Tensor]
    state: TrainingState
    rng: RngState
    probe_loss_nats: float
    metrics_file: Path | None


class CheckpointWriter:
    """Writes the candidates of one attempt. One save is under way at a time.

    `durable_step` is the step of the newest candidate that every rank knows to be committed.

    Args:
        on_sign: called by the thread that waits for a save, at most every `LOOK_S`, while the save shows signs of life: tries
            and parts of files on their way to the store, and what the ranks agree on. Told whether this rank has done its
            part and waits for the others.
    """

    def __init__(
        self,
        ledger: Ledger,
        request: TrainRequest,
        config: Config,
        *,
        rank: int,
        world_size: int,
        scratch: Path,
        switch: FaultSwitch | None = None,
        on_sign: Callable[[bool], None] = lambda is_agreeing: None,
    ) -> None:
        self.durable_step = request.first_step - 1
        self._ledger = ledger
        self._request = request
        self._settings = config.checkpoint
        self._retry_delay_s = config.storage.max_delay_s
        self._rank = rank
        self._world_size = world_size
        self._scratch = scratch
        self._switch = switch
        self._on_sign = on_sign
        self._turns = 0
        self._is_agreeing = False
        self._group = new_group()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._pending_step = 0
        self._failure: PrunellaError | None = None
        committed = ledger.candidates(request.segment, request.attempt)
        self._index = len(committed)
        self._shipped_step = max([request.first_step - 1, *(manifest.step for manifest in committed)])

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        state: TrainingState,
        probe_loss_nats: float,
        metrics_file: Path | None,
    ) -> None:
        """Start to save the candidate of `step`; returns once its tensors are copied. Joins the save before it first.

        Args:
            metrics_file: on rank 0, the live file of step records, one JSON line a step, that of `step` already in it;
                None on the other ranks.

        Raises:
            PrunellaError: what the save before this one raised.
        """
        assert state.step == step, (state.step, step)
        self.wait()
        job = _Save(
            step=step,
            tensors=stage(logical_tensors(model, optimizer)),
            state=state,
            rng=capture_rng(),
            probe_loss_nats=probe_loss_nats,
            metrics_file=metrics_file,
        )
        self._pending_step = step
        self._pending = self._thread.submit(self._save, job)

    def wait(self) -> None:
        """Block until the save under way is durable.

        Raises:
            PrunellaError: it failed, on every rank alike, and `checkpoint.on_save_failure` is not `warn`.
            Fenced: another attempt holds the token, whatever the setting.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self._stay_until_done(pending)
        try:
            pending.result()
        except PrunellaError as error:
            if isinstance(error, Fenced) or self._settings.on_save_failure is not OnSaveFailure.WARN:
                raise
            self._failure = error
            logger.warning("checkpoint_save_failed step=%s error=%s", self._pending_step, error)
        else:
            self.durable_step = self._pending_step
            self._failure = None

    def wait_if_needed(self, step: int) -> None:
        """Block until `step` may be counted: no more than `max_unsaved_steps` steps without a durable candidate.

        The decision depends on step numbers alone, so that all ranks take it alike.

        Raises:
            PrunellaError: the save that had to be waited for failed (R13).
        """
        if step - self.durable_step <= self._max_unsaved:
            return
        self.wait()
        if self._failure is not None and step - self.durable_step > self._max_unsaved:
            raise type(self._failure)(
                f"step {step}: the newest durable candidate is of step {self.durable_step}, and "
                f"checkpoint.max_unsaved_steps allows {self._max_unsaved} steps without one; last save: {self._failure}"
            )

    def close(self) -> None:
        """End the thread after the save under way. Does not raise what that save raised."""
        if self._pending is not None:
            self._stay_until_done(self._pending)
        self._thread.shutdown(wait=True)

    def _stay_until_done(self, pending: Future[None]) -> None:
        """Wait for the thread, and tell of the signs of life that it gives."""
        told: tuple[int, int, bool] | None = None
        while not wait_for([pending], timeout=LOOK_S).done:
            signs = (self._ledger.store.moves, self._turns, self._is_agreeing)
            if signs != told:
                told = signs
                self._on_sign(signs[-1])

    @property
    def _max_unsaved(self) -> int:
        chosen = self._settings.max_unsaved_steps
        return self._settings.interval_steps if chosen is None else chosen

    # -------------------------------------------------------------------------------- in the thread

    def _save(self, job: _Save) -> None:
        tries = SAVE_TRIES if self._settings.on_save_failure is OnSaveFailure.RETRY else 1
        for attempt in range(1, tries + 1):
            try:
                self._commit(job)
                return
            except Fenced:
                raise
            except PrunellaError as error:
                if attempt == tries:
                    raise
                logger.warning("checkpoint_save_retried step=%s try=%s error=%s", job.step, attempt, error)
                time.sleep(self._retry_delay_s)

    def _commit(self, job: _Save) -> None:
        name = f"{self._request.segment:04d}-{self._request.attempt:02d}-{self._index:04d}"
        folder = self._scratch / f"{name}-rank-{self._rank:05d}"
        try:
            self._agree(lambda: self._write_shards(folder, job.tensors))
            answers = self._agree(lambda: self._upload(name, folder, job))
            self._agree(lambda: self._finish(name, folder, job, answers))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._ledger.store.limit_copies(self._ledger.checkpoints_prefix, newest=self._settings.keep_local)
        self._index += 1
        self._shipped_step = job.step

    def _agree(self, work: Callable[[], Any]) -> list[Any]:
        """As `agree`; whoever waits can see whether this rank works, or waits for the others."""

        def own_part() -> Any:
            try:
                return work()
            finally:
                self._turn(is_agreeing=True)

        try:
            return agree(self._group, own_part)
        finally:
            self._turn(is_agreeing=False)

    def _turn(self, *, is_agreeing: bool) -> None:
        self._turns += 1
        self._is_agreeing = is_agreeing

    def _write_shards(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        writer.sync_files = False  # the store syncs its own copy; this one is scratch
        save_sharded(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)

    def _upload(self, name: str, folder: Path, job: _Save) -> dict[str, Any]:
        prefix = self._ledger.checkpoint_prefix(name)
        mark = f"{job.step:06d}-{uuid.uuid4().hex[:8]}"  # a save that failed half-way never stands in the way of the next
        entries = []
        for path in sorted(folder.glob("*.safetensors")):
            entries.append(self._put(f"{prefix}/{mark}-{path.name}", path))
        return {"files": codec.encode(entries), "rng": codec.encode(job.rng)}

    def _put(self, key: str, path: Path) -> FileEntry:
        content = self._ledger.store.put_new_file(key, path, keep_copy=self._settings.keep_local > 0)
        return FileEntry(key=key, sha256=content.sha256, size_bytes=content.size_bytes)

    def _finish(self, name: str, folder: Path, job: _Save, answers: list[Any]) -> None:
        if self._rank != 0:
            return
        files = [codec.decode(FileEntry, entry, name) for answer in answers for entry in answer["files"]]
        rng = tuple(codec.decode(RngState, answer["rng"], name) for answer in answers)
        files.append(self._put_state(name, folder, dataclasses.replace(job.state, rng=rng)))
        metrics = self._ship_metrics(job)
        request = self._request
        manifest = CheckpointManifest(
            name=name,
            experiment=self._ledger.name,
            segment=request.segment,
            attempt=request.attempt,
            step=job.step,
            world_size=self._world_size,
            config_digest=request.config_digest,
            dataset=request.dataset,
            files=tuple(sorted(files, key=lambda entry: entry.key)),
            metrics=metrics,
            probe_loss_nats=job.probe_loss_nats,
            torch_version=torch.__version__,
            written_ns=time.time_ns(),
            skipped=job.state.skipped,
        )
        self._ledger.check_token(segment=request.segment, attempt=request.attempt, run_index=request.run_index)
        self._ledger.put(self._ledger.manifest_key(name), manifest)
        logger.info("checkpoint_committed name=%s step=%s files=%s", name, job.step, len(files))
        self._corrupt_if_asked(manifest)

    def _put_state(self, name: str, folder: Path, state: TrainingState) -> FileEntry:
        path = folder / f"{state.step:06d}-{uuid.uuid4().hex[:8]}-state.json"
        path.write_bytes(to_bytes(state))
        return self._put(f"{self._ledger.checkpoint_prefix(name)}/{path.name}", path)

    def _ship_metrics(self, job: _Save) -> tuple[FileEntry, ...]:
        if job.metrics_file is None:
            return ()
        entry = ship_metrics(
            self._ledger, self._request, job.metrics_file, first_step=self._shipped_step + 1, last_step=job.step
        )
        if entry is None:
            raise ConfigError(f"{job.metrics_file}: holds no record of steps {self._shipped_step + 1} to {job.step}")
        return (entry,)

    def _corrupt_if_asked(self, manifest: CheckpointManifest) -> None:
        for fault in self._switch.of_kind("corrupt-checkpoint") if self._switch else ():
            if fault.step == manifest.step and self._switch and self._switch.fire(fault, step=manifest.step):
                victim = next(entry.key for entry in manifest.files if entry.key.endswith(".safetensors"))
                faults.flip_byte(self._ledger.store, victim)
