"""What data prep says of bad input: one clear error, or a counted and reported quarantine; never silence."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunella.config import DataConfig
from prunella.data_prep.documents import Corpus, LeftOut, read_documents
from prunella.data_prep.sources import resolve_inputs
from prunella.data_prep.vocabulary import dtype_for
from prunella.errors import Cause, ConfigError


def inputs(*paths):
    return "data.inputs=[" + ",".join(f'"{path}"' for path in paths) + "]"


def refusal(experiment):
    """The message with which the stage refuses, after which nothing of a data set may lie there."""
    with pytest.raises(ConfigError) as caught:
        experiment.prepare()
    assert caught.value.cause is Cause.CONFIG_ERROR
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ inputs that do not exist


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing.txt", "no such file or folder"),
        ("missing-*.txt", "no file matches this glob"),
        ("builtin:bible", "unknown built-in corpus 'builtin:bible'; there is 'builtin:stdlib'"),
        ("store:corpus/missing", "nothing under that key"),
    ],
)
def test_a_missing_input_is_named_with_the_next_step(open_on, corpus, name, expected):
    experiment = open_on("root", inputs(corpus, name))

    message = refusal(experiment)

    assert name in message
    assert expected in message
    assert experiment.files() == {}


def test_an_empty_folder_is_an_empty_corpus(open_on, tmp_path):
    (tmp_path / "empty").mkdir()

    assert "found 0" in refusal(open_on("root", inputs(tmp_path / "empty")))


def test_files_without_text_are_an_empty_corpus(open_on, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()

    assert "found 0" in refusal(open_on("root", inputs(tmp_path / "a.txt", tmp_path / "b.txt")))


def test_a_single_document_cannot_be_split(open_on, tmp_path):
    (tmp_path / "one.txt").write_text("word " * 1000)

    assert "expected at least 2 documents" in refusal(open_on("root", inputs(tmp_path / "one.txt")))


def test_a_corpus_below_one_batch_says_what_is_missing(open_on, make_corpus, tmp_path):
    make_corpus(tmp_path / "tiny", documents=2, words=50)

    message = refusal(open_on("root", inputs(tmp_path / "tiny"), "batch.global_sequences=1000"))

    assert "expected at least batch.global_sequences=1000" in message


def test_too_little_held_out_text_says_what_to_raise(open_on, corpus):
    message = refusal(open_on("root", inputs(corpus), "model.seq_len=5000", "batch.global_sequences=1"))

    assert "raise data.heldout_fraction" in message


# ------------------------------------------------------------------------------------------------ inputs that cannot be read


def bad_text(folder):
    (folder / "bad.txt").write_bytes(b"abc\xff\xfe")
    return "bad.txt", "not UTF-8 at byte 3"


def broken_link(folder):
    (folder / "bad.txt").symlink_to(folder / "nowhere")
    return "bad.txt", "expected a regular file"


def link_to_a_name_too_long(folder):
    (folder / "bad.txt").symlink_to("n" * 300)
    return "bad.txt", "cannot be looked at: File name too long"


def name_that_is_no_utf8(folder):
    (folder / os.fsdecode(b"bad\xe9.txt")).write_bytes(b"\xff")
    return "bad\\xe9.txt", "not UTF-8 at byte 0"


def pipe(folder):
    os.mkfifo(folder / "bad.txt")
    return "bad.txt", "expected a regular file"


def broken_json(folder):
    (folder / "bad.jsonl").write_text('{"text": "good"}\n\n{"text": "cut o\n')
    return "bad.jsonl:3", "broken JSON"


def deep_json(folder):
    (folder / "bad.jsonl").write_text("[" * 100_000)
    return "bad.jsonl:1", "broken JSON"


def other_field(folder):
    (folder / "bad.jsonl").write_text('{"body": "good"}\n')
    return "bad.jsonl:1", "no text in field 'text' (data.jsonl_field)"


def number_for_text(folder):
    (folder / "bad.jsonl").write_text('{"text": 7}\n')
    return "bad.jsonl:1", "no text in field"


def no_object(folder):
    (folder / "bad.jsonl").write_text("[1, 2]\n")
    return "bad.jsonl:1", "no text in field"


def half_a_pair(folder):
    (folder / "bad.jsonl").write_text('{"text": "\\ud800"}\n')
    return "bad.jsonl:1", "half of a surrogate pair"


def bad_encoding(folder):
    (folder / "bad.jsonl").write_bytes(b'{"text": "\xff"}\n')
    return "bad.jsonl:1", "broken JSON"


def no_parquet(folder):
    (folder / "bad.parquet").write_bytes(b"PAR1 not really PAR1")
    return "bad.parquet", "broken Parquet"


def other_column(folder):
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), folder / "bad.parquet")
    return "bad.parquet", "no column 'text' of text (data.parquet_column); columns: body, n"


def column_of_numbers(folder):
    pq.write_table(pa.table({"text": [1, 2]}), folder / "bad.parquet")
    return "bad.parquet", "no column 'text' of text"


def two_columns_of_one_name(folder):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, folder / "bad.parquet")
    return "bad.parquet", "expected one column 'text' (data.parquet_column), found 2"


def null_for_text(folder):
    pq.write_table(pa.table({"text": ["one text", None, ""]}), folder / "bad.parquet")
    return "bad.parquet:2", "no text in column 'text' (data.parquet_column), but null"


def damaged_parquet(folder):
    path = folder / "bad.parquet"
    pq.write_table(pa.table({"text": [f"text number {n} " * 20 for n in range(2000)]}), path)
    data = bytearray(path.read_bytes())
    data[100:400] = b"\xff" * 300
    path.write_bytes(data)
    return "bad.parquet", "broken Parquet"


BAD = [
    bad_text,
    broken_link,
    link_to_a_name_too_long,
    name_that_is_no_utf8,
    pipe,
    broken_json,
    deep_json,
    other_field,
    number_for_text,
    no_object,
    half_a_pair,
    bad_encoding,
    no_parquet,
    other_column,
    column_of_numbers,
    two_columns_of_one_name,
    null_for_text,
    damaged_parquet,
]


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_read_is_quarantined_counted_and_named(open_on, corpus, spoil):
    name, reason = spoil(corpus)
    experiment = open_on("root", inputs(corpus))

    record = experiment.prepare()

    [quarantined] = experiment.manifest().quarantined
    assert record.quarantined == 1
    assert quarantined.path == f"{corpus}/{name}"
    assert reason in quarantined.reason
    assert record.documents >= 40


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_read_is_an_error_where_that_was_chosen(open_on, corpus, spoil):
    name, reason = spoil(corpus)
    experiment = open_on("root", inputs(corpus), "data.on_bad_input=error")

    message = refusal(experiment)

    assert f"{corpus}/{name}: " in message
    assert reason in message
    assert "data.on_bad_input=quarantine" in message
    assert experiment.files() == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_quarantined(open_on, corpus):
    (corpus / "000.txt").chmod(0)
    experiment = open_on("root", inputs(corpus))

    experiment.prepare()

    assert "Permission denied" in experiment.manifest().quarantined[0].reason


def test_of_a_parquet_file_that_is_damaged_further_on_nothing_is_taken(store, tmp_path):
    """In its second group of rows: the first alone is larger than what is read at once."""
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"text": [f"text number {n}" for n in range(140_000)]}), path, row_group_size=70_000)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 300] = b"\xff" * 300
    path.write_bytes(data)
    corpus, left_out = Corpus(sources=resolve_inputs((str(path),), store), settings=DataConfig()), LeftOut()

    documents = list(read_documents(corpus, left_out))

    assert documents == []
    [quarantined] = left_out.quarantined
    assert quarantined.path == str(path)
    assert "broken Parquet" in quarantined.reason


def test_quarantine_does_not_change_the_tokens(open_on, corpus):
    clean = open_on("clean", inputs(corpus)).prepare()
    bad_text(corpus)

    assert open_on("spoilt", inputs(corpus)).prepare().fingerprint == clean.fingerprint


# ------------------------------------------------------------------------------------------------ tokenizers


def test_a_missing_tokenizer_file_is_named(open_on, corpus):
    assert "'nowhere.json': No such file" in refusal(open_on("root", inputs(corpus), "data.tokenizer=nowhere.json"))


@pytest.mark.parametrize("content", [b"not json", b"{}", b"\xff\xfe", b'{"model": 7}'])
def test_a_file_that_is_no_tokenizer_is_refused(open_on, corpus, tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)

    assert "not a tokenizer.json" in refusal(open_on("root", inputs(corpus), f'data.tokenizer="{path}"'))


def trained_tokenizer(experiment):
    experiment.prepare()
    return experiment.path(experiment.manifest().tokenizer.key).read_text()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(open_on, experiment, corpus, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(trained_tokenizer(experiment))

    message = refusal(open_on("other", inputs(corpus), f'data.tokenizer="{path}"', "model.vocab_size=299"))

    assert "its 300 token ids do not fit model.vocab_size=299; set model.vocab_size=300" in message


def test_a_tokenizer_without_an_end_of_text_token_is_refused(open_on, experiment, corpus, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(trained_tokenizer(experiment).replace("<|endoftext|>", "<|other|>"))

    assert "no end-of-text token" in refusal(open_on("other", inputs(corpus), f'data.tokenizer="{path}"'))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (2**32, "uint32")])
def test_the_smallest_type_that_holds_every_id_is_chosen(vocab_size, dtype):
    assert dtype_for(vocab_size) == dtype


def test_a_vocabulary_too_large_for_any_type_is_refused(open_on, corpus):
    message = refusal(open_on("root", inputs(corpus), f"model.vocab_size={2**32 + 1}"))

    assert "expected at most 4294967296" in message
