"""The second pass: documents become tokens on several threads and reach their shard jobs in order.

`tokenizers` leaves Python's lock while it encodes, so threads use all the cores asked for, with no process to lose. Each
document is encoded by itself and handed on in the order of the corpus: the number of threads cannot change a token.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from prunella.data.dtypes import DTYPES
from prunella.data_prep.documents import Document
from prunella.data_prep.progress import show_progress
from prunella.data_prep.shards import ShardJob, Tokens
from prunella.data_prep.survey import Survey, read_again

#: Text handed to a thread at once. Source: own choice 2026-11: about 0.2 s of work, far above the cost of handing over.
_BATCH_BYTES = 262_144
#: Batches a thread may lie ahead of the one that is written; bounds memory.
_AHEAD = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """How a document becomes token ids."""

    tokenizer: Tokenizer
    end_of_text: int
    dtype: str

    def encode(self, text: str) -> Tokens:
        """Token ids of a document and the end-of-text behind them, shape (n,). A batch of one: `encode` holds Python's lock."""
        [encoding] = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return np.array([*encoding.ids, self.end_of_text], dtype=DTYPES[self.dtype])


@dataclass(frozen=True, slots=True)
class _Placed:
    """A document and its number inside its split."""

    document: Document
    split: str
    number: int


def run_jobs(survey: Survey, encoder: Encoder, jobs: list[ShardJob], *, workers: int) -> None:
    """Read the corpus again and give each job the documents that it wants.

    Raises:
        DataCorrupt: the corpus is not the one that was surveyed.
    """
    if all(job.is_done for job in jobs):
        return
    with show_progress("tokenisation", survey.size_bytes) as advance:
        wanted = _wanted(_placed(survey), jobs, advance)
        for placed, tokens in _encoded(wanted, encoder, workers):
            for job in jobs:
                if job.split == placed.split and job.wants(placed.number):
                    job.feed(placed.number, tokens)
            advance(placed.document.size_bytes)
    for job in jobs:
        job.finish()


def _wanted(documents: Iterator[_Placed], jobs: list[ShardJob], advance: Callable[[int], None]) -> Iterator[_Placed]:
    """Documents that some job still wants; the others count as done."""
    for placed in documents:
        if all(job.is_done for job in jobs):
            return
        if any(job.split == placed.split and job.wants(placed.number) for job in jobs):
            yield placed
        else:
            advance(placed.document.size_bytes)


def _placed(survey: Survey) -> Iterator[_Placed]:
    numbers: Counter[str] = Counter()
    for document in read_again(survey):
        split = survey.split_of(document.sha256)
        yield _Placed(document, split, numbers[split])
        numbers[split] += 1


def _encoded(documents: Iterator[_Placed], encoder: Encoder, workers: int) -> Iterator[tuple[_Placed, Tokens]]:
    """Documents with their tokens, in order, `workers` batches at a time."""
    pending: deque[tuple[list[_Placed], Future[list[Tokens]]]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="tokenise") as threads:
        for batch in _batches(documents):
            pending.append((batch, threads.submit(_encode_batch, encoder, batch)))
            if len(pending) > _AHEAD * workers:
                yield from _in_order(pending.popleft())
        while pending:
            yield from _in_order(pending.popleft())


def _in_order(batch: tuple[list[_Placed], "Future[list[Tokens]]"]) -> Iterable[tuple[_Placed, Tokens]]:
    documents, future = batch
    return zip(documents, future.result(), strict=True)


def _encode_batch(encoder: Encoder, batch: list[_Placed]) -> list[Tokens]:
    return [encoder.encode(placed.document.text) for placed in batch]


def _batches(documents: Iterator[_Placed]) -> Iterator[list[_Placed]]:
    batch: list[_Placed] = []
    size_bytes = 0
    for placed in documents:
        batch.append(placed)
        size_bytes += placed.document.size_bytes
        if size_bytes >= _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch
