"""Checkpoints: how candidates are written, proven, loaded, listed and let go. This is the door; the rooms are beside it.

    checkpoint_state      what a checkpoint holds by logical name, and the digest over it
    checkpoint_writer     the asynchronous sharded save and its commit: files, then the manifest, last
    checkpoint_reader     proof of every byte, then loading at any world size
    checkpoint_probe      the fixed batch and its loss, recorded at the save and reproduced by validation
    checkpoint_history    the list, the newest verified one, retention (needs no torch: schedulers import it directly)
    checkpoint_metrics    step records on their way to the ledger (needs no torch: the launcher imports it directly)
    checkpoint_agreement  ranks succeed together or fail together

A checkpoint exists when its manifest does. Tensors are safetensors, everything else is JSON, nothing is unpickled.
"""

from prunella.checkpoint_history import CheckpointState, CheckpointStatus, list_checkpoints, newest_verified, prune
from prunella.checkpoint_metrics import ship_metrics
from prunella.checkpoint_probe import probe_batch, probe_loss
from prunella.checkpoint_reader import load, read_full
from prunella.checkpoint_state import (
    RngState,
    TrainingState,
    capture_rng,
    logical_digest,
    model_tensors,
    parameter_digest,
    restore_rng,
)
from prunella.checkpoint_writer import CheckpointWriter

__all__ = [
    "CheckpointState",
    "CheckpointStatus",
    "CheckpointWriter",
    "RngState",
    "TrainingState",
    "capture_rng",
    "list_checkpoints",
    "load",
    "logical_digest",
    "model_tensors",
    "newest_verified",
    "parameter_digest",
    "probe_batch",
    "probe_loss",
    "prune",
    "read_full",
    "restore_rng",
    "ship_metrics",
]
