"""Which files a corpus consists of."""

import sysconfig
from pathlib import Path

import pytest

from prunella.config import DataConfig
from prunella.data_prep.documents import Corpus, LeftOut, read_documents
from prunella.data_prep.sources import check_inputs, resolve_inputs
from prunella.errors import ConfigError


@pytest.fixture
def tree(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.md", ".hidden", ".git/config", "d.jsonl"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


def labels(store, *inputs):
    return [source.label for source in resolve_inputs(inputs, store)]


def test_a_folder_is_all_its_visible_files_sorted(store, tree):
    assert labels(store, f"{tree}/") == [f"{tree}/{name}" for name in ("a/b/c.md", "a/z.txt", "b.txt", "d.jsonl")]


def test_a_glob_is_its_files_sorted(store, tree):
    assert labels(store, f"{tree}/**/*.txt") == [f"{tree}/a/z.txt", f"{tree}/b.txt"]


def test_a_file_is_itself_and_inputs_keep_their_order(store, tree):
    assert labels(store, f"{tree}/d.jsonl", f"{tree}/b.txt") == [f"{tree}/d.jsonl", f"{tree}/b.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(store, tree):
    (tree / "what[1].txt").write_text("text")

    assert labels(store, f"{tree}/what[1].txt") == [f"{tree}/what[1].txt"]


def test_inputs_come_from_the_object_store_too(store):
    for key in ("corpus/b.txt", "corpus/a/x.jsonl", "other/c.txt"):
        store.put_new(key, b"text")

    sources = resolve_inputs(("store:corpus", "store:other/c.txt"), store)

    assert [source.label for source in sources] == ["store:corpus/a/x.jsonl", "store:corpus/b.txt", "store:other/c.txt"]
    assert sources[1].use(Path.read_bytes) == b"text"


def test_a_stored_corpus_is_looked_at_without_being_fetched(store, monkeypatch):
    store.put_new("corpus/a.txt", b"")
    store.put_new("corpus/b.txt", b"text")
    monkeypatch.setattr(store, "local_path", lambda key: pytest.fail(f"fetched {key}"))

    check_inputs(DataConfig(inputs=("store:corpus",)), store)
    with pytest.raises(ConfigError, match="expected files with text, found 1 files, none of which"):
        check_inputs(DataConfig(inputs=("store:corpus/a.txt",)), store)


def test_of_a_stored_corpus_only_what_is_read_is_fetched(store, monkeypatch):
    for name in ("a", "b", "c"):
        store.put_new(f"corpus/{name}.txt", name.encode() * 100)
    fetched, fetch = [], store.local_path
    monkeypatch.setattr(store, "local_path", lambda key: fetched.append(key) or fetch(key))
    corpus = Corpus(sources=resolve_inputs(("store:corpus",), store), settings=DataConfig(max_bytes=100))

    documents = list(read_documents(corpus, LeftOut()))

    assert [document.text for document in documents] == ["a" * 100]
    assert fetched == ["corpus/a.txt", "corpus/b.txt"]


def test_a_key_that_climbs_out_of_the_store_is_refused(store):
    with pytest.raises(ConfigError, match="object key"):
        resolve_inputs(("store:../secrets",), store)


def test_the_standard_library_is_found_at_run_time_without_installed_packages(store):
    sources = resolve_inputs(("builtin:stdlib",), store)

    names = [source.label for source in sources]
    assert "builtin:stdlib/json/decoder.py" in names
    assert all(name.endswith(".py") for name in names)
    assert not any("site-packages" in name for name in names)
    assert all(source.path.is_relative_to(Path(sysconfig.get_path("stdlib"))) for source in sources)
    assert names == sorted(names, key=lambda name: name.split("/"))


def test_the_standard_library_gives_documents(store):
    corpus = Corpus(sources=resolve_inputs(("builtin:stdlib",), store), settings=DataConfig(max_bytes=200_000))
    left_out = LeftOut()

    documents = list(read_documents(corpus, left_out))

    assert 50_000 < sum(document.size_bytes for document in documents) <= 200_000
    assert left_out.quarantined == []


def test_a_corpus_that_cannot_be_one_is_refused_before_anything_is_read(store, tmp_path):
    (tmp_path / "empty.txt").touch()

    with pytest.raises(ConfigError, match="expected files with text, found 1 files, none of which"):
        check_inputs(DataConfig(inputs=(str(tmp_path / "empty.txt"),)), store)
    with pytest.raises(ConfigError, match="no such file or folder"):
        check_inputs(DataConfig(inputs=(str(tmp_path / "nothing"),)), store)
    with pytest.raises(ConfigError, match="no such file; give a tokenizer"):
        check_inputs(DataConfig(tokenizer=str(tmp_path / "tokenizer.json")), store)


def test_a_corpus_with_one_file_of_text_may_be_one(store, tree):
    check_inputs(DataConfig(inputs=(str(tree),)), store)
