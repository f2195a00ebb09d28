"""Reading a checkpoint back: every byte is proven before a parser sees it, and nothing foreign is loaded.

Trusted: the reference (it pins the manifest, which pins every file). Never trusted: names, shapes, dtypes and the loader
state inside the files; they must be those of the run that loads. Only files that the manifest names are looked at, so a
planted file is never opened, and nothing is ever unpickled.
"""

import contextlib
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.optim import Optimizer

from prunella.checkpoint_agreement import agree, new_group
from prunella.checkpoint_state import OPTIM, TrainingState, logical_tensors, make_room
from prunella.errors import CheckpointInvalid, ConfigError, DigestMismatch, KeyMissing
from prunella.ledger import Ledger
from prunella.records import CheckpointManifest, CheckpointRef, DataPrepRecord, FileEntry, from_bytes
from prunella.scratch import make_folder, scratch_base
from prunella.storage import Content, with_local_file

logger = logging.getLogger(__name__)

#: Full shape and dtype by logical name.
Sizes = dict[str, tuple[torch.Size, torch.dtype]]

_NEXT = "roll back to an older checkpoint (`prunella checkpoint list` shows them)"


def load(ledger: Ledger, ref: CheckpointRef, model: nn.Module, optimizer: Optimizer) -> TrainingState:
    """Load a checkpoint into a model that is already parallelised, and its optimizer; at any world size.

    Called by all ranks. The learning rate and the other hyper-parameters of the optimizer are left as they are.

    Raises:
        CheckpointInvalid: on every rank alike: a file is missing, damaged or foreign, or the loader state is. The model
            and the optimizer may then hold parts of it and must not be used.
        StorageUnavailable: the store did not answer.
    """
    group = new_group()
    try:
        return _load(ledger, ref, model, optimizer, group)
    finally:
        if group is not None:
            dist.destroy_process_group(group)


def _load(
    ledger: Ledger, ref: CheckpointRef, model: nn.Module, optimizer: Optimizer, group: dist.ProcessGroup | None
) -> TrainingState:
    manifest = read_manifest(ledger, ref)
    agree(group, lambda: _verify_share(ledger, manifest, group))
    state = read_state(ledger, manifest)
    with contextlib.ExitStack() as opened:
        shown: list[Path] = []
        agree(group, lambda: shown.append(opened.enter_context(folder_of(ledger, manifest))))
        sizes = read_sizes(shown[0], manifest)
        agree(group, lambda: _prepare(model, optimizer, sizes, manifest))
        reader = HuggingFaceStorageReader(str(shown[0]))
        load_sharded(logical_tensors(model, optimizer), storage_reader=reader, process_group=group, no_dist=group is None)
    return state


def read_full(ledger: Ledger, ref: CheckpointRef) -> tuple[dict[str, Tensor], TrainingState]:
    """The full tensors of a checkpoint by logical name, on the CPU, in one process without peers.

    Raises:
        CheckpointInvalid: a file is missing or damaged, or the loader state is.
    """
    manifest = read_manifest(ledger, ref)
    for entry in manifest.files:
        verify_file(ledger, manifest, entry)
    return read_tensors(ledger, manifest), read_state(ledger, manifest)


def read_tensors(ledger: Ledger, manifest: CheckpointManifest) -> dict[str, Tensor]:
    """The full tensors, on the CPU, of a checkpoint whose files `verify_file` has proven."""
    with folder_of(ledger, manifest) as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # reading alone is what we want
        sizes = read_sizes(folder, manifest)
        tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in sizes.items()}
        load_sharded(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors


# ------------------------------------------------------------------------------------------------ manifest and files


def read_manifest(ledger: Ledger, ref: CheckpointRef) -> CheckpointManifest:
    """The manifest that `ref` pins.

    Raises:
        CheckpointInvalid: it is missing, damaged, or of another experiment.
    """
    try:
        manifest = ledger.manifest(ref)
    except (KeyMissing, DigestMismatch, ConfigError) as error:
        raise CheckpointInvalid(f"checkpoint {ref.name}: its manifest cannot be read: {error}; {_NEXT}") from error
    if manifest.experiment != ledger.name:
        raise CheckpointInvalid(
            f"checkpoint {ref.name}: expected one of experiment {ledger.name!r}, found one of {manifest.experiment!r}; {_NEXT}"
        )
    known = ledger.config_digests()
    if manifest.config_digest not in known:
        raise CheckpointInvalid(
            f"checkpoint {ref.name}: foreign: expected one written under the configuration of this experiment "
            f"({', '.join(sorted(digest[:12] for digest in known))}), found {manifest.config_digest[:12]}; {_NEXT}"
        )
    return manifest


def verify_file(ledger: Ledger, manifest: CheckpointManifest, entry: FileEntry) -> None:
    """Prove that a file holds the bytes that were committed. A damaged copy of a bucket's object is fetched once more.

    Raises:
        CheckpointInvalid: it is missing, or its size or sha256 differs.
    """
    store, wanted = ledger.store, _content(entry)
    try:
        found = store.measure(entry.key)
        if found != wanted and store.drop_copy(entry.key):
            logger.warning("damaged_copy_dropped key=%s expected=%s found=%s", entry.key, wanted.sha256, found.sha256)
            found = store.measure(entry.key)
    except (KeyMissing, FileNotFoundError) as error:
        raise CheckpointInvalid(
            f"checkpoint {manifest.name} (step {manifest.step}) lacks 1 of {len(manifest.files)} files: {entry.key}; {_NEXT}"
        ) from error
    if found != wanted:
        raise CheckpointInvalid(
            f"checkpoint {manifest.name} (step {manifest.step}): {entry.key} is damaged: expected {wanted.size_bytes} bytes "
            f"with sha256 {wanted.sha256}, found {found.size_bytes} bytes with {found.sha256}; {_NEXT}"
        )


def _verify_share(ledger: Ledger, manifest: CheckpointManifest, group: dist.ProcessGroup | None) -> None:
    """Each rank proves every world_size-th file; together they prove all."""
    rank, world_size = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    for entry in manifest.files[rank::world_size]:
        verify_file(ledger, manifest, entry)


@contextlib.contextmanager
def folder_of(ledger: Ledger, manifest: CheckpointManifest) -> Iterator[Path]:
    """A folder that shows the reader the proven tensor files and nothing else.

    It lies in scratch, beside the copies of a bucket's objects: there the files get a second name, and outlive the copies.

    Raises:
        CheckpointInvalid: a file that had to be fetched for that is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=make_folder(scratch_base())) as name:
        for entry in manifest.files:
            if entry.key.endswith(".safetensors"):
                _place(ledger, manifest, entry, Path(name) / Path(entry.key).name)
        yield Path(name)


def _place(ledger: Ledger, manifest: CheckpointManifest, entry: FileEntry, path: Path) -> None:
    """Show a file. One that is fetched only now (another machine proved it, or its copy had to make room) is proven now."""
    fetched = ledger.store.place(entry.key, path)
    if fetched not in (None, _content(entry)):
        path.unlink()
        verify_file(ledger, manifest, entry)  # which looks at the bucket once more
        ledger.store.place(entry.key, path)


def _content(entry: FileEntry) -> Content:
    return Content(size_bytes=entry.size_bytes, sha256=entry.sha256)


# ------------------------------------------------------------------------------------------------ loader state (R12)


def read_state(ledger: Ledger, manifest: CheckpointManifest) -> TrainingState:
    """The loader state and counters of a checkpoint, proven to belong to this experiment.

    Raises:
        CheckpointInvalid: it is missing, malformed, or of another step, data set or seed.
    """
    entry = next((entry for entry in manifest.files if entry.key.endswith("-state.json")), None)
    if entry is None:
        raise CheckpointInvalid(f"checkpoint {manifest.name} has no loader state (a file *-state.json); {_NEXT}")
    try:
        verify_file(ledger, manifest, entry)
        state = from_bytes(TrainingState, with_local_file(ledger.store, entry.key, Path.read_bytes), entry.key)
    except (KeyMissing, FileNotFoundError, DigestMismatch, ConfigError, ValueError) as error:
        raise CheckpointInvalid(f"checkpoint {manifest.name}: its loader state cannot be read: {error}; {_NEXT}") from error
    for what, expected, found in _claims(ledger, manifest, state):
        if expected != found:
            raise CheckpointInvalid(
                f"checkpoint {manifest.name}: foreign loader state: expected {what} {expected!r}, found {found!r}; {_NEXT}"
            )
    return state


def _claims(ledger: Ledger, manifest: CheckpointManifest, state: TrainingState) -> list[tuple[str, object, object]]:
    """What the loader state must say: (what, expected, found)."""
    claims: list[tuple[str, object, object]] = [
        ("step", manifest.step, state.step),
        ("world size", manifest.world_size, state.world_size),
        ("random states", manifest.world_size, len(state.rng)),
        ("skipped windows", manifest.skipped, state.skipped),
        ("data set", manifest.dataset, state.dataset),
        ("seed", ledger.config().seed, state.seed),
    ]
    dataset = ledger.find(DataPrepRecord, ledger.dataset_key)
    if dataset is not None:
        claims.append(("data set of the experiment", dataset.fingerprint, state.dataset))
    return claims


# ------------------------------------------------------------------------------------------------ names and shapes


def read_sizes(folder: Path, manifest: CheckpointManifest) -> Sizes:
    """Full shape and dtype of every tensor, after checking that its pieces cover it exactly.

    Raises:
        CheckpointInvalid: a tensor file is malformed, or a piece of a tensor is in none of them.
    """
    try:
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    except Exception as error:  # safetensors raises its own class, a crafted header any other
        raise CheckpointInvalid(f"checkpoint {manifest.name}: not readable as safetensors: {error}; {_NEXT}") from error
    return {name: (item.size, item.properties.dtype) for name, item in _covered(metadata, manifest).items()}


def _covered(metadata: Metadata, manifest: CheckpointManifest) -> dict[str, TensorStorageMetadata]:
    tensors = {name: item for name, item in metadata.state_dict_metadata.items() if isinstance(item, TensorStorageMetadata)}
    for name, item in tensors.items():
        found = sum(math.prod(chunk.sizes) for chunk in item.chunks)
        if found != math.prod(item.size):
            raise CheckpointInvalid(
                f"checkpoint {manifest.name}: tensor {name!r} is incomplete: expected {math.prod(item.size)} elements, "
                f"found {found}; {_NEXT}"
            )
    return tensors


def _prepare(model: nn.Module, optimizer: Optimizer, sizes: Sizes, manifest: CheckpointManifest) -> None:
    make_room(model, optimizer, sizes)
    live = {name: (tensor.shape, tensor.dtype) for name, tensor in logical_tensors(model, optimizer).items()}
    check_same(live, sizes, manifest.name)
    if any(group["params"] for group in optimizer.param_groups) and not any(name.startswith(OPTIM) for name in sizes):
        raise CheckpointInvalid(f"checkpoint {manifest.name} has no optimizer state; {_NEXT}")


def check_same(expected: Sizes, found: Sizes, name: str) -> None:
    """Raise CheckpointInvalid unless both have the same tensors with the same shapes and dtypes."""
    different = sorted(tensor for tensor in expected.keys() | found.keys() if expected.get(tensor) != found.get(tensor))
    if not different:
        return
    first = different[0]
    raise CheckpointInvalid(
        f"checkpoint {name} does not fit this configuration: {len(different)} tensors differ, first {first!r}: "
        f"expected {_describe(expected.get(first))}, found {_describe(found.get(first))}; "
        "load it with the configuration that wrote it, or start another experiment"
    )


def _describe(item: tuple[torch.Size, torch.dtype] | None) -> str:
    return "none" if item is None else f"{list(item[0])} {str(item[1]).removeprefix('torch.')}"
