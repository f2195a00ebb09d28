"""Every way Prunella can fail, and the class of healing each one asks for.

The exception's type is the classification: whoever raises knows the cause, whoever handles copies `error.cause` into
its record and never guesses from the text. The tree:

    PrunellaError                 unknown: nobody classified it; a person reads the traceback
    |- ConfigError                config_error: stop at once, retrying cannot help
    |- DataCorrupt                data_corrupt: rebuild the named shard from the corpus, then retry
    |- StorageError
    |  |- StorageUnavailable      storage_unavailable: transient; the call is retried, then the attempt
    |  |- StorageFull             storage_unavailable: a person frees space; nothing is half written
    |  |- KeyExists               unknown: somebody else wrote this key first; the caller decides what that means
    |  |- KeyMissing              unknown: absence, which the caller turns into evidence
    |  `- DigestMismatch          checkpoint_invalid or data_corrupt by what was read; unknown for a record
    |- CheckpointInvalid          checkpoint_invalid: roll back to the next older candidate
    |- NodeUnhealthy              node_unhealthy: replace the node; asks a person where too few are left
    |- NonFinite                  non_finite: roll back; skip the window when it comes again
    |- Fenced                     fenced: another attempt holds the token; stop quietly, nothing to heal
    |- OutOfMemory                out_of_memory: the same configuration will not fit a second time
    |- Vanished                   vanished: a process ended without a record
    |- TrackingUnavailable        unknown: the mirror is away; never stops training, the next close catches up
    `- SchemaTooNew               config_error: written by a newer Prunella; upgrade before reading

Exit codes are a hint for people; records carry the cause.
"""

from enum import StrEnum
from typing import ClassVar


class Cause(StrEnum):
    """Why something went wrong. The closed vocabulary of diagnoses, incidents and budgets."""

    PROCESS_CRASH = "process_crash"
    NODE_UNHEALTHY = "node_unhealthy"
    HANG = "hang"
    NON_FINITE = "non_finite"
    CHECKPOINT_INVALID = "checkpoint_invalid"
    DATA_CORRUPT = "data_corrupt"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    CONFIG_ERROR = "config_error"
    QUALITY_REGRESSION = "quality_regression"
    FENCED = "fenced"
    VANISHED = "vanished"
    UNKNOWN = "unknown"


class PrunellaError(Exception):
    """Base of all errors raised on purpose. The message says expected, found, where and what to do next."""

    cause: ClassVar[Cause] = Cause.UNKNOWN


class ConfigError(PrunellaError):
    """The configuration, the command line or a request cannot be meant as written."""

    cause = Cause.CONFIG_ERROR


class DataCorrupt(PrunellaError):
    """A token shard or its manifest does not hold what was committed.

    Args:
        shard: number of the shard inside its split, where one is to blame.
    """

    cause = Cause.DATA_CORRUPT

    def __init__(self, message: str, *, shard: int | None = None) -> None:
        super().__init__(message)
        self.shard = shard


class StorageError(PrunellaError):
    """The object store did not do what was asked."""


class StorageUnavailable(StorageError):
    """The store could not be reached. Transient: the same idempotent call may succeed later."""

    cause = Cause.STORAGE_UNAVAILABLE


class StorageFull(StorageError):
    """The store has no room. Waiting does not help by itself, a person does."""

    cause = Cause.STORAGE_UNAVAILABLE


class KeyExists(StorageError):
    """`put_new` found the key taken. Nothing was written."""


class KeyMissing(StorageError):
    """The key does not exist."""


class DigestMismatch(StorageError):
    """Bytes read differ from the bytes committed. Raised before any parser sees them."""


class CheckpointInvalid(PrunellaError):
    """A checkpoint is incomplete, damaged, foreign, or not what its manifest says."""

    cause = Cause.CHECKPOINT_INVALID


class NodeUnhealthy(PrunellaError):
    """Fewer healthy nodes than the experiment needs."""

    cause = Cause.NODE_UNHEALTHY


class NonFinite(PrunellaError):
    """The loss or the gradient norm of a step is NaN or infinite; the optimizer step was not taken."""

    cause = Cause.NON_FINITE


class Fenced(PrunellaError):
    """A newer attempt holds the token; whatever this process would write is noise."""

    cause = Cause.FENCED


class OutOfMemory(PrunellaError):
    """Host or device memory ran out."""

    cause = Cause.OUT_OF_MEMORY


class Vanished(PrunellaError):
    """A process ended and left no record."""

    cause = Cause.VANISHED


class TrackingUnavailable(PrunellaError):
    """MLflow could not be reached or refused. The ledger is whole; the caller warns and goes on."""


class SchemaTooNew(PrunellaError):
    """A record was written by a newer Prunella than this one."""

    cause = Cause.CONFIG_ERROR
