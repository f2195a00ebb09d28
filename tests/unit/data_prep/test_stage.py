"""Data prep from end to end on a small corpus."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from prunella.data.reader import TokenReader, load_tokenizer
from prunella.errors import Cause, ConfigError, DataCorrupt
from prunella.records import Part, Verdict


def stream(experiment, split):
    manifest = experiment.manifest()
    reader = TokenReader(experiment.ledger.store, manifest, split)
    return reader.sequence(0, reader.n_tokens - 1)


def documents_of(experiment, split):
    """The documents of a split, decoded from its tokens."""
    manifest = experiment.manifest()
    tokenizer = load_tokenizer(experiment.ledger.store, manifest)
    tokens = stream(experiment, split)
    assert tokens[-1] == manifest.end_of_text
    pieces = np.split(tokens, np.flatnonzero(tokens == manifest.end_of_text) + 1)[:-1]
    return [tokenizer.decode(piece[:-1].tolist()) for piece in pieces]


def test_the_tokens_are_the_documents_each_in_one_split_with_an_end_of_text_behind_it(experiment, corpus):
    record = experiment.prepare()

    train, heldout = documents_of(experiment, "train"), documents_of(experiment, "heldout")
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    assert record.verdict is Verdict.ACCEPTED
    assert train == [text for text in texts if text in set(train)]
    assert sorted(train + heldout) == sorted(texts)
    assert train
    assert heldout


def test_record_and_manifest_agree_with_the_files(experiment):
    record = experiment.prepare()

    manifest = experiment.manifest()
    assert (record.train_tokens, record.heldout_tokens) == (manifest.train_tokens, manifest.heldout_tokens)
    assert record.train_tokens == sum(shard.tokens for shard in manifest.train)
    assert [shard.tokens for shard in manifest.train[:-1]] == [1024] * (len(manifest.train) - 1)
    assert 0 < manifest.train[-1].tokens <= 1024
    assert sum(shard.documents for shard in manifest.train + manifest.heldout) == manifest.documents == record.documents == 40
    heldout = "".join(documents_of(experiment, "heldout"))
    assert manifest.heldout_bytes == len(heldout.encode())
    for shard in manifest.train + manifest.heldout:
        data = experiment.path(shard.file.key).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.file.size_bytes, shard.file.sha256)
        assert len(data) == 2 * shard.tokens


def test_the_time_of_the_stage_is_data_preparation(experiment):
    record = experiment.prepare()

    [span] = record.spans
    assert (span.part, span.start_ns, span.end_ns) == (Part.DATA_PREPARATION, record.started_ns, record.ended_ns)


def test_any_number_of_workers_gives_the_same_bytes(open_on, make_corpus, tmp_path):
    big = make_corpus(tmp_path / "big", documents=60, words=2500)
    experiments = [
        open_on(f"root-{n}", f'data.inputs=["{big}"]', f"data.workers={n}", "data.shard_tokens=16384") for n in (1, 2, 3)
    ]

    for experiment in experiments:
        experiment.prepare()

    first, second, third = (experiment.files() for experiment in experiments)
    assert len(first) > 20
    assert first == second == third


def test_a_second_run_does_nothing_and_needs_no_corpus(experiment, corpus):
    first = experiment.prepare()
    before = {path: experiment.path(f"datasets/{path}").stat().st_mtime_ns for path in experiment.files()}
    shutil.rmtree(corpus)

    second = experiment.prepare()

    after = {path: experiment.path(f"datasets/{path}").stat().st_mtime_ns for path in experiment.files()}
    assert (second.fingerprint, second.manifest_sha256) == (first.fingerprint, first.manifest_sha256)
    assert second.repaired_shards == ()
    assert after == before


def test_another_place_and_another_number_of_workers_keep_the_fingerprint(experiment, corpus, open_on, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    other = open_on("other", f'data.inputs=["{moved}"]', "data.workers=2")

    assert other.prepare().fingerprint == experiment.prepare().fingerprint


@pytest.mark.parametrize(
    "setting",
    [
        "model.vocab_size=301",
        "data.heldout_fraction=0.2",
        "data.shard_tokens=2048",
        "data.tokenizer_train_bytes=6000",
        "data.max_bytes=50000",
    ],
)
def test_whatever_determines_the_tokens_changes_the_fingerprint(experiment, corpus, open_on, setting):
    other = open_on("other", f'data.inputs=["{corpus}"]', setting)

    assert other.prepare().fingerprint != experiment.prepare().fingerprint


def test_another_text_changes_the_fingerprint(experiment, corpus, open_on):
    before = experiment.prepare().fingerprint
    (corpus / "007.txt").write_text("another text")

    assert open_on("other", f'data.inputs=["{corpus}"]').prepare().fingerprint != before


def test_exact_duplicates_are_taken_once_and_counted(experiment, corpus):
    shutil.copy(corpus / "003.txt", corpus / "copy-of-003.txt")
    shutil.copy(corpus / "004.txt", corpus / "copy-of-004.txt")

    record = experiment.prepare()

    assert record.documents == 40
    assert experiment.manifest().duplicates == 2


def test_a_further_document_moves_no_other_to_another_split(experiment, corpus, open_on):
    experiment.prepare()
    before = set(documents_of(experiment, "heldout"))
    (corpus / "040.txt").write_text("a document more " * 50)

    other = open_on("other", f'data.inputs=["{corpus}"]')
    other.prepare()

    assert before <= set(documents_of(other, "heldout")) | {"a document more " * 50}
    assert before.isdisjoint(documents_of(other, "train"))


def test_nothing_held_out_reaches_the_vocabulary(open_on, tmp_path):
    """A text of its own letters in every document: only those of training documents may be merged."""
    folder = tmp_path / "letters"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.txt").write_text(chr(0x4E00 + 7 * number) * 200)
    experiment = open_on("root", f'data.inputs=["{folder}"]', "data.tokenizer_train_bytes=1000000", "model.vocab_size=512")
    experiment.prepare()

    tokenizer = load_tokenizer(experiment.ledger.store, experiment.manifest())
    lengths = {
        split: [len(tokenizer.encode(text).ids) for text in documents_of(experiment, split)] for split in ("train", "heldout")
    }

    assert min(lengths["heldout"]) > max(lengths["train"])


def test_a_text_that_spells_the_end_of_text_token_stays_one_document(experiment, corpus):
    (corpus / "000.txt").write_text("one<|endoftext|>two " * 40)

    record = experiment.prepare()

    assert "one<|endoftext|>two " * 40 in documents_of(experiment, "train") + documents_of(experiment, "heldout")
    assert len(documents_of(experiment, "train") + documents_of(experiment, "heldout")) == record.documents


def test_max_bytes_takes_whole_documents_in_order(experiment, corpus, open_on):
    sizes = [path.stat().st_size for path in sorted(corpus.iterdir())]
    other = open_on("other", f'data.inputs=["{corpus}"]', f"data.max_bytes={sum(sizes[:20]) + 1}")

    assert other.prepare().documents == 20


def test_a_loaded_tokenizer_is_used_as_it_is(experiment, corpus, open_on, tmp_path):
    experiment.prepare()
    path = tmp_path / "tokenizer.json"
    path.write_bytes(experiment.path(experiment.manifest().tokenizer.key).read_bytes())
    other = open_on("other", f'data.inputs=["{corpus}"]', f'data.tokenizer="{path}"', "model.vocab_size=70000")

    other.prepare()

    assert other.path(other.manifest().tokenizer.key).read_bytes() == path.read_bytes()
    assert (other.manifest().dtype, experiment.manifest().dtype) == ("uint32", "uint16")
    assert other.manifest().vocab_size == experiment.manifest().vocab_size == 300
    assert np.array_equal(stream(other, "train"), stream(experiment, "train"))


def test_two_experiments_of_one_root_share_the_data_set(experiment, corpus):
    first = experiment.prepare()
    experiment.path(experiment.ledger.dataset_key).unlink()
    inode = experiment.path(experiment_shard(first, 0)).stat().st_ino

    second = experiment.prepare()

    assert second.manifest_sha256 == first.manifest_sha256
    assert experiment.path(experiment_shard(first, 0)).stat().st_ino == inode


def experiment_shard(record, number):
    return f"datasets/{record.fingerprint}/train-{number:05d}.bin"


# ------------------------------------------------------------------------------------------------ damage and repair


@pytest.mark.parametrize("numbers", [(0,), (2,), (1, 2), (0, 4)])
@pytest.mark.parametrize("damage", ["cut", "remove"])
def test_shards_with_a_wrong_size_are_rebuilt_bit_for_bit(experiment, numbers, damage):
    record = experiment.prepare()
    whole = experiment.files()
    for number in numbers:
        path = experiment.path(experiment_shard(record, number))
        os.truncate(path, 100) if damage == "cut" else path.unlink()

    repaired = experiment.prepare()

    assert repaired.repaired_shards == numbers
    assert repaired.manifest_sha256 == record.manifest_sha256
    assert experiment.files() == whole
    assert len(set_aside(experiment)) == (len(numbers) if damage == "cut" else 0)


def set_aside(experiment):
    return experiment.ledger.store.list(f"set-aside/datasets/{experiment.manifest().fingerprint}")


@pytest.mark.parametrize("request_", [{"is_repair": True}, {"inputs": {"datasets/x/manifest.json": "0"}}])
def test_a_repair_finds_a_flipped_byte_that_an_ordinary_run_cannot_see(experiment, request_):
    record = experiment.prepare()
    whole = experiment.files()
    flip(experiment.path(experiment_shard(record, 3)))
    flip(experiment.path(f"datasets/{record.fingerprint}/heldout-00000.bin"))

    ordinary = experiment.prepare()
    repaired = experiment.prepare(**request_)

    assert ordinary.repaired_shards == ()
    assert repaired.repaired_shards == (3, 0)
    assert experiment.files() == whole


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_tokenizer_is_trained_again_to_the_same_bytes(experiment):
    record = experiment.prepare()
    whole = experiment.files()
    flip(experiment.path(f"datasets/{record.fingerprint}/tokenizer.json"))

    experiment.prepare(is_repair=True)

    assert experiment.files() == whole


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink()])
def test_a_damaged_or_lost_manifest_is_written_again(experiment, damage):
    record = experiment.prepare()
    whole = experiment.files()
    damage(experiment.path(f"datasets/{record.fingerprint}/manifest.json"))

    again = experiment.prepare()

    assert again.manifest_sha256 == record.manifest_sha256
    assert experiment.files() == whole


def test_a_lost_manifest_of_the_same_documents_and_another_copy_of_one_names_the_copy(experiment, corpus):
    record = experiment.prepare()
    experiment.path(f"datasets/{record.fingerprint}/manifest.json").unlink()
    shutil.copy(corpus / "003.txt", corpus / "copy-of-003.txt")

    with pytest.raises(DataCorrupt, match=r"also counts copies of them \(found 1\)"):
        experiment.prepare()
    (corpus / "copy-of-003.txt").unlink()

    assert experiment.prepare().manifest_sha256 == record.manifest_sha256


def test_a_damaged_shard_is_not_rebuilt_from_another_corpus(experiment, corpus):
    record = experiment.prepare()
    path = experiment.path(experiment_shard(record, 1))
    os.truncate(path, 100)
    (corpus / "000.txt").write_text("not what it was")

    with pytest.raises(DataCorrupt, match="cannot be rebuilt: the corpus"):
        experiment.prepare()

    assert path.stat().st_size == 100, "the evidence stays"


def test_a_damaged_shard_without_its_corpus_names_the_missing_input(experiment, corpus):
    record = experiment.prepare()
    experiment.path(experiment_shard(record, 1)).unlink()
    shutil.rmtree(corpus)

    with pytest.raises(ConfigError, match="no such file or folder"):
        experiment.prepare()


# ------------------------------------------------------------------------------------------------ faults


def test_truncate_shard_cuts_the_committed_shard_once(open_on, corpus):
    experiment = open_on("root", f'data.inputs=["{corpus}"]', faults=("truncate-shard:shard=1",))

    record = experiment.prepare()

    manifest = experiment.manifest()
    cut = experiment.path(manifest.train[1].file.key)
    assert cut.stat().st_size == manifest.train[1].file.size_bytes // 2
    with pytest.raises(DataCorrupt) as caught:
        TokenReader(experiment.ledger.store, manifest, "train")
    assert (caught.value.cause, caught.value.shard) == (Cause.DATA_CORRUPT, 1)

    repaired = experiment.prepare(is_repair=True)

    assert repaired.repaired_shards == (1,)
    assert repaired.manifest_sha256 == record.manifest_sha256
    assert TokenReader(experiment.ledger.store, manifest, "train").n_tokens == manifest.train_tokens


def test_a_fault_on_a_shard_that_does_not_exist_is_refused_unfired(open_on, corpus):
    experiment = open_on("root", f'data.inputs=["{corpus}"]', faults=("truncate-shard:shard=99",))

    with pytest.raises(ConfigError, match="no such shard; training shards are 0 to"):
        experiment.prepare()

    assert experiment.ledger.store.list(f"{experiment.ledger.prefix}/faults") == []


def test_jsonl_gives_a_document_a_line(open_on, tmp_path, corpus):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"body": file.read_text()}) + "\n" for file in sorted(corpus.iterdir())))
    from_lines = open_on("lines", f'data.inputs=["{path}"]', "data.jsonl_field=body")
    from_files = open_on("files", f'data.inputs=["{corpus}"]')

    assert from_lines.prepare().fingerprint == from_files.prepare().fingerprint
