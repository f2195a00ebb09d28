"""The live step records of rank 0 in scratch, and what a display shows of them. They ship with candidates, the rest at exit."""

import json
from pathlib import Path

from prunella import codec
from prunella.codec import canonical_json
from prunella.errors import ConfigError
from prunella.records import StepRecord
from prunella.scratch import write_atomically
from prunella.training_segment.job import PROGRESS_FILE, STEPS_FILE


class StepLog:
    """Rank 0's file of step records, one JSON line each, flushed every step."""

    def __init__(self, scratch: Path, *, last_step: int) -> None:
        self.path = scratch / STEPS_FILE
        self._progress = scratch / PROGRESS_FILE
        self._last_step = last_step
        self._file = self.path.open("ab")

    def append(self, record: StepRecord) -> None:
        """Add a finished step, and show it."""
        self._file.write(canonical_json(record) + b"\n")
        self._file.flush()
        progress = {
            "step": record.step,
            "last_step": self._last_step,
            "loss_nats": record.loss_nats,
            "tokens_per_s": record.tokens_per_s,
        }
        write_atomically(self._progress, json.dumps(progress))

    def close(self) -> None:
        """Close the file; what was appended stays."""
        self._file.close()


def read_last(scratch: Path) -> StepRecord | None:
    """The last whole step record of an attempt's scratch; None when no step finished. A torn last line does not count."""
    path = scratch / STEPS_FILE
    if not path.exists():
        return None
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    for line in reversed(whole):
        try:
            return codec.decode(StepRecord, json.loads(line), str(path))
        except (json.JSONDecodeError, ConfigError):
            continue
    return None
