"""The object store: immutable keys, one conditional write, bounded patience.

The only write is `put_new`, which fails if the key exists; one object is atomic, nothing larger. `FolderStore` keeps the
promise on a file system, `S3Store` in a bucket. `RetryingStore` waits out a store that does not answer, with jitter and a
bound, and remembers when it had to.
"""

from pathlib import Path

from prunella.config import StorageConfig
from prunella.errors import ConfigError
from prunella.storage.arbitration import find_overwriting, try_out
from prunella.storage.bucket import SCHEME
from prunella.storage.cache import open_again
from prunella.storage.folder import FolderStore
from prunella.storage.parts import identity_of
from prunella.storage.retrying import RetryingStore, Wait, WrappedStore, longest_silence_s
from prunella.storage.s3 import S3Store
from prunella.storage.store import Content, Stamp, Store, check_key, is_full, with_local_file

__all__ = [
    "Content",
    "FolderStore",
    "RetryingStore",
    "S3Store",
    "Stamp",
    "Store",
    "Wait",
    "WrappedStore",
    "check_key",
    "check_root_is_there",
    "create_root",
    "identity_of",
    "is_full",
    "longest_silence_s",
    "open_again",
    "open_patiently",
    "open_store",
    "prove_root",
    "with_local_file",
]


#: Patience where an experiment is opened: somebody sits at the terminal. Source: own choice 2026-11.
_OPENING = StorageConfig(retry_s=15.0)


def open_store(root: str) -> Store:
    """The store behind a `--root`: a folder, or `s3://BUCKET/PREFIX`.

    Raises:
        ConfigError: the root names a kind of store that there is not.
    """
    scheme, separator, _ = root.partition("://")
    if not separator:
        return FolderStore(root)
    if scheme != SCHEME:
        raise ConfigError(f"--root {root}: {scheme} roots are not supported; give a local folder or s3://BUCKET/PREFIX")
    return S3Store(root)


def open_patiently(root: str, settings: StorageConfig | None = None) -> RetryingStore:
    """The store behind a `--root`, behind retries. Raises as `open_store`."""
    return RetryingStore(open_store(root), settings or StorageConfig())


def check_root_is_there(root: str) -> None:
    """Return quietly where a folder root is a folder; a bucket is asked when it is used.

    Raises:
        ConfigError: it is none.
    """
    if "://" not in root and not Path(root).is_dir():
        raise ConfigError(f"--root {root}: no such folder; start an experiment with `prunella run --root {root}`")


def create_root(root: str) -> None:
    """Make the folder behind a `--root`, if it is a folder and absent. Called where an experiment is opened, nowhere else.

    Raises:
        ConfigError: there is a file in its place, or it may not be made.
    """
    if "://" in root:
        return
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--root {root}: cannot be made a folder ({error.strerror}); choose another") from error


def prove_root(root: str, *, is_sole_writer: bool = False) -> None:
    """Prove that a bucket can hold a ledger. A folder needs no proof: its file system arbitrates.

    Args:
        is_sole_writer: somebody else sees to it that nobody writes beside us: Airflow's unique run ids, or a person's word.

    Raises:
        ConfigError: the bucket refuses us, or lets several writers of one key all succeed and nobody else arbitrates.
        StorageUnavailable: it does not answer.
    """
    store = open_store(root)
    if not isinstance(store, S3Store):
        return
    patient = RetryingStore(store, _OPENING)
    if is_sole_writer:
        try_out(store, patient)
    elif seen := find_overwriting(store, patient):
        raise ConfigError(
            f"--root {store.root}: {seen}; this server does not honour If-None-Match, so nothing would fence two commands "
            "off each other; if this is the only one, pass --sole-writer"
        )
