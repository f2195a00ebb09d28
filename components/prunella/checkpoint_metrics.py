"""Step records leave scratch for the ledger as immutable chunks: with each candidate, and at exit. Needs no torch."""

import hashlib
import json
from pathlib import Path

from prunella.errors import KeyExists
from prunella.ledger import Ledger
from prunella.records import FileEntry, TrainRequest


def ship_metrics(
    ledger: Ledger, request: TrainRequest, metrics_file: Path, *, first_step: int, last_step: int
) -> FileEntry | None:
    """Put the step records of `first_step` to `last_step` into an immutable chunk of the attempt; None if there are none.

    The chunk is named by the first and last step it really holds. Only whole lines count.
    """
    whole = metrics_file.read_text().rpartition("\n")[0].splitlines()
    lines = {step: line for line in whole if first_step <= (step := int(json.loads(line)["step"])) <= last_step}
    if not lines:
        return None
    data = "".join(f"{lines[step]}\n" for step in sorted(lines)).encode()
    prefix = ledger.attempt_prefix(request.segment, request.attempt)
    key = f"{prefix}/metrics/{min(lines):06d}-{max(lines):06d}.jsonl"
    try:
        ledger.store.put_new(key, data)
    except KeyExists:  # a save that failed after this point shipped the same steps
        if ledger.store.get(key) != data:
            raise
    return FileEntry(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
