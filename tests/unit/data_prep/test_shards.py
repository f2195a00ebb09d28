"""Cutting a stream of documents into shards, from any start."""

import numpy as np
import pytest

from prunella.data.manifest import Shard
from prunella.data_prep.shards import Position, ShardJob, position_after
from prunella.records import FileEntry

ENTRY = FileEntry(key="k", sha256="0", size_bytes=0)


def run_job(documents, *, number=0, last=None, start=Position(), shard_tokens=8):  # noqa: B008 - frozen
    shards = {}

    def commit(number, tokens, documents, carry):
        shards[number] = (tokens.tolist(), Shard(file=ENTRY, tokens=len(tokens), documents=documents, carry=carry))

    job = ShardJob("train", number=number, last=last, start=start, shard_tokens=shard_tokens, dtype="uint16", commit=commit)
    for index, tokens in enumerate(documents):
        if job.wants(index):
            job.feed(index, tokens)
    job.finish()
    return shards


def random_documents(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 1000, size=rng.integers(1, 40)) for _ in range(30)]


@pytest.mark.parametrize("seed", range(8))
def test_shards_laid_end_to_end_are_the_stream(seed):
    documents = random_documents(seed)

    shards = run_job(documents)

    assert list(shards) == list(range(len(shards)))
    assert [token for tokens, _ in shards.values() for token in tokens] == np.concatenate(documents).tolist()
    assert {len(tokens) for tokens, _ in list(shards.values())[:-1]} == {8}
    assert sum(shard.documents for _, shard in shards.values()) == len(documents)


@pytest.mark.parametrize("seed", range(4))
def test_building_behind_any_shard_gives_the_same_shards_as_building_them_all(seed):
    documents = random_documents(seed)
    whole = run_job(documents)
    described = [shard for _, shard in whole.values()]

    for number in range(len(whole) + 1):
        rest = run_job(documents, number=number, start=position_after(described[:number]))
        alone = run_job(documents, number=number, last=number, start=position_after(described[:number]))

        assert rest == {key: value for key, value in whole.items() if key >= number}
        assert alone == {key: value for key, value in whole.items() if key == number}


def test_a_document_that_ends_with_its_shard_leaves_nothing_over():
    shards = run_job([np.arange(8), np.arange(16), np.arange(3)])

    assert [(shard.documents, shard.carry) for _, shard in shards.values()] == [(1, 0), (0, 8), (1, 0), (1, 0)]
