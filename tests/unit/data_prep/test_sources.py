"""Which files a corpus consists of."""

import glob
import os
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunella.config import DataConfig
from prunella.data_prep.documents import Corpus, LeftOut, read_documents
from prunella.data_prep.sources import check_inputs, places, resolve_inputs
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


@pytest.mark.parametrize(
    "pattern",
    ["**", "**/*.txt", "./**/*.txt", "a/**", "**/b/*", "*/**/*.md", "[a]/**/*", "**/**/*.txt", "**/.git/config", "**/.hidden"],
)
def test_without_links_a_glob_means_what_it_means_to_python(store, tree, monkeypatch, pattern):
    monkeypatch.chdir(tree)

    found = labels(store, pattern)

    assert found == sorted({path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()})
    assert found


def test_what_lies_below_a_linked_folder_is_part_of_the_corpus(store, tree, tmp_path):
    write(tmp_path / "outside", "x.txt", "deep/y.txt")
    (tree / "link").symlink_to(tmp_path / "outside")

    assert labels(store, f"{tree}") == [
        f"{tree}/{name}" for name in ("a/b/c.md", "a/z.txt", "b.txt", "d.jsonl", "link/deep/y.txt", "link/x.txt")
    ]
    assert labels(store, f"{tree}/**/*.txt") == [
        f"{tree}/{name}" for name in ("a/z.txt", "b.txt", "link/deep/y.txt", "link/x.txt")
    ]


@pytest.mark.timeout(60)
def test_links_in_circles_end_and_change_no_path(store, tree):
    inputs = (f"{tree}", f"{tree}/**", f"{tree}/**/*.txt")
    before = [labels(store, name) for name in inputs]

    for name in ("0", "1", "a/0", "a/1", "a/b/0"):
        (tree / name).symlink_to(tree)
    (tree / "2").symlink_to(tree / "a")

    assert [labels(store, name) for name in inputs] == before


def test_a_folder_that_only_links_lead_to_comes_once_under_the_first_of_them(store, tree, tmp_path):
    write(tmp_path / "outside", "x.txt")
    (tmp_path / "outside" / "back").symlink_to(tree)
    for name in ("y", "x", "w/deeper"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).symlink_to(tmp_path / "outside")

    found = [name for name in labels(store, f"{tree}") if name.endswith("x.txt")]

    assert found == [f"{tree}/w/deeper/x.txt"]


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root lists everything")
def test_a_folder_that_cannot_be_listed_is_no_silent_gap(store, tree):
    (tree / "a").chmod(0)

    try:
        found = [labels(store, name) for name in (f"{tree}", f"{tree}/**/*.txt")]
    finally:
        (tree / "a").chmod(0o700)

    assert found == [[f"{tree}/{name}" for name in names] for names in (("a", "b.txt", "d.jsonl"), ("a", "b.txt"))]


def test_a_name_that_is_no_utf8_is_opened_as_it_is_and_printed_with_its_bytes(store, tmp_path):
    folder = tmp_path / "corpus"
    write(folder, "one.txt", "two.jsonl")
    (folder / "two.jsonl").write_text('{"text": "two.jsonl"}')
    pq.write_table(pa.table({"text": ["three.parquet"]}), folder / "three.parquet")
    for path in sorted(folder.iterdir()):
        path.rename(folder / os.fsdecode(b"\xe9" + path.suffix.encode()))
    left_out = LeftOut()

    corpus = Corpus(sources=resolve_inputs((str(folder),), store), settings=DataConfig())
    texts = [document.text for document in read_documents(corpus, left_out)]

    assert texts == ["two.jsonl", "three.parquet", "one.txt"]
    assert [source.label for source in corpus.sources] == [f"{folder}/\\xe9.{kind}" for kind in ("jsonl", "parquet", "txt")]
    assert labels(store, f"{folder}/*.txt") == [f"{folder}/\\xe9.txt"]
    assert left_out.quarantined == []


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


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n" * 300, "File name too long"),
        ("~nobody-of-that-name/corpus", "Could not determine home directory"),
        ("nul\0", ".*embedded null.*"),
    ],
    ids=["too long", "unknown user", "impossible"],
)
def test_what_cannot_be_looked_at_is_refused_before_anything_is_recorded(store, name, reason):
    with pytest.raises(ConfigError, match=rf"^data\.inputs: .* cannot be looked at: {reason}; correct data\.inputs"):
        check_inputs(DataConfig(inputs=(name,)), store)
    with pytest.raises(ConfigError, match=rf"^data\.tokenizer: .* cannot be looked at: {reason}; correct data\.tokenizer"):
        check_inputs(DataConfig(tokenizer=name), store)

    assert places(DataConfig(inputs=(name,), tokenizer=name)) == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root looks at everything")
def test_what_lies_in_a_closed_folder_is_refused_before_anything_is_recorded(store, tree):
    tree.chmod(0)

    try:
        with pytest.raises(ConfigError, match=r"cannot be looked at: Permission denied"):
            check_inputs(DataConfig(inputs=(f"{tree}/b.txt",)), store)
        assert places(DataConfig(inputs=(f"{tree}/b.txt",))) == ()
    finally:
        tree.chmod(0o700)


def test_a_file_that_cannot_be_looked_at_does_not_condemn_its_folder(store, tree):
    (tree / "0.txt").symlink_to("n" * 300)

    check_inputs(DataConfig(inputs=(str(tree),)), store)


def test_a_corpus_with_one_file_of_text_may_be_one(store, tree):
    check_inputs(DataConfig(inputs=(str(tree),)), store)
