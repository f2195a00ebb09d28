"""Whether a committed data set is still what its manifest says. Finds damage; repairs nothing."""

import logging
from dataclasses import dataclass

from prunella.data.manifest import SPLITS, DatasetManifest, load_manifest, manifest_key
from prunella.data.reader import check_sha256, check_size
from prunella.errors import DataCorrupt
from prunella.records import FileEntry
from prunella.storage import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was found. `manifest` is None where there is none or it is damaged; `damaged` are shards as (split, number)."""

    manifest: DatasetManifest | None
    is_tokenizer_damaged: bool = False
    damaged: tuple[tuple[str, int], ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether the data set may be read as it is."""
        return self.manifest is not None and not self.is_tokenizer_damaged and not self.damaged


def inspect_dataset(store: Store, fingerprint: str, *, manifest_sha256: str | None, is_full: bool) -> Inspection:
    """Check sizes, and with `is_full` every byte, of the data set `fingerprint`.

    Raises:
        SchemaTooNew: its manifest was written by a newer Prunella.
    """
    if manifest_sha256 is None and not store.exists(manifest_key(fingerprint)):
        return Inspection(manifest=None)
    try:
        manifest = load_manifest(store, fingerprint, manifest_sha256)
    except DataCorrupt as error:
        logger.warning("damaged_manifest_found fingerprint=%s error=%s", fingerprint, error)
        return Inspection(manifest=None)
    return Inspection(
        manifest=manifest,
        is_tokenizer_damaged=_is_damaged(store, manifest.tokenizer, is_full),
        damaged=tuple(
            (split, number)
            for split in SPLITS
            for number, shard in enumerate(manifest.shards(split))
            if _is_damaged(store, shard.file, is_full)
        ),
    )


def _is_damaged(store: Store, entry: FileEntry, is_full: bool) -> bool:
    try:
        (check_sha256 if is_full else check_size)(store, entry)
    except DataCorrupt as error:
        logger.warning("damaged_part_found key=%s error=%s", entry.key, error)
        return True
    return False
