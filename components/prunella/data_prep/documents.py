"""What the documents of a corpus are: read, cleaned of exact duplicates, cut at `data.max_bytes`.

A text file is one document, a JSONL line or a Parquet row is one; empty ones are none. What cannot be read, and what is null
where text should be, is quarantined (counted, named, left out) or ends the preparation, by `data.on_bad_input`; it is never
skipped in silence. Of a damaged Parquet file nothing is taken. The same corpus gives the same documents in the same order
every time: all passes of the preparation rely on that.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prunella.config import DataConfig, OnBadInput
from prunella.data.manifest import Quarantined
from prunella.data_prep.sources import Source
from prunella.errors import ConfigError, DataCorrupt

logger = logging.getLogger(__name__)

_TextOrRefusal = Iterator[str | Quarantined]
_BROKEN_PARQUET = (OSError, pa.ArrowException, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Document:
    """A distinct text of the corpus. `sha256` (32 bytes) and `size_bytes` are of its UTF-8 form."""

    text: str
    sha256: bytes
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The files of the corpus and how to read them."""

    sources: tuple[Source, ...]
    settings: DataConfig


@dataclass(slots=True)
class LeftOut:
    """What one reading of the corpus did not yield."""

    duplicates: int = 0
    quarantined: list[Quarantined] = field(default_factory=list)


def read_documents(corpus: Corpus, left_out: LeftOut) -> Iterator[Document]:
    """Distinct documents in order, until the next would pass `data.max_bytes`; `left_out` is filled meanwhile.

    Raises:
        ConfigError: something cannot be read and `data.on_bad_input` is `error`.
        DataCorrupt: a Parquet file changed while it was read.
    """
    seen: set[bytes] = set()
    left_bytes = corpus.settings.max_bytes
    for text in _accepted_texts(corpus, left_out):
        data = text.encode()
        document = Document(text, hashlib.sha256(data).digest(), len(data))
        if document.sha256 in seen:
            left_out.duplicates += 1
            continue
        if left_bytes is not None:
            left_bytes -= document.size_bytes
            if left_bytes < 0:
                return
        seen.add(document.sha256)
        yield document


def _accepted_texts(corpus: Corpus, left_out: LeftOut) -> Iterator[str]:
    for source in corpus.sources:
        for text in _texts_of(source, corpus.settings):
            if isinstance(text, Quarantined):
                _refuse(text, corpus.settings.on_bad_input)
                left_out.quarantined.append(text)
            elif text:
                yield text


def _refuse(bad: Quarantined, on_bad_input: OnBadInput) -> None:
    if on_bad_input is OnBadInput.ERROR:
        raise ConfigError(
            f"{bad.path}: {bad.reason}; mend or remove it, or set data.on_bad_input=quarantine, "
            "which leaves it out and counts it"
        )


def _texts_of(source: Source, settings: DataConfig) -> _TextOrRefusal:
    if (problem := source.problem()) is not None:
        yield Quarantined(path=source.label, reason=problem)
        return
    readers: dict[str, Callable[[Source, DataConfig], _TextOrRefusal]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    yield from readers.get(source.suffix.lower(), _read_text)(source, settings)


def _read_text(source: Source, settings: DataConfig) -> _TextOrRefusal:
    try:
        yield source.use(Path.read_bytes).decode()
    except OSError as error:
        yield Quarantined(path=source.label, reason=f"unreadable: {error.strerror}")
    except UnicodeDecodeError as error:
        yield Quarantined(path=source.label, reason=f"not UTF-8 at byte {error.start}")


def _read_jsonl(source: Source, settings: DataConfig) -> _TextOrRefusal:
    try:
        with source.use(lambda path: path.open("rb")) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _text_of_line(line, settings.jsonl_field, f"{source.label}:{number}")
    except OSError as error:
        yield Quarantined(path=source.label, reason=f"unreadable: {error.strerror}")


def _text_of_line(line: bytes, field_name: str, where: str) -> str | Quarantined:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Quarantined(path=where, reason=f"broken JSON: {error}")
    text = value.get(field_name) if isinstance(value, dict) else None
    if not isinstance(text, str):
        return Quarantined(path=where, reason=f"no text in field {field_name!r} (data.jsonl_field)")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Quarantined(path=where, reason="half of a surrogate pair, which is no text")
    return text


def _read_parquet(source: Source, settings: DataConfig) -> _TextOrRefusal:
    """Reads every row before it yields the first: a file is either whole, or left out whole."""
    column = settings.parquet_column
    try:
        with source.use(_open_natively) as opened, pq.ParquetFile(opened) as file:
            if (problem := _problem_of_columns(file.schema_arrow, column)) is not None:
                yield Quarantined(path=source.label, reason=problem)
                return
            for batch in file.iter_batches(columns=[column]):
                batch.column(0).validate(full=True)
            yield from _rows(file, column, source.label)
    except _BROKEN_PARQUET as error:
        yield Quarantined(path=source.label, reason=f"broken Parquet: {error}")


def _open_natively(path: Path) -> Any:
    """The file as pyarrow reads it. Named in bytes: pyarrow would encode a name as UTF-8, which not every name is."""
    return pa.OSFile(os.fsencode(path))


def _rows(file: pq.ParquetFile, column: str, label: str) -> _TextOrRefusal:
    """Texts of a file whose rows could all be read. Rows count from 1, as the lines of a JSONL file."""
    reason = f"no text in column {column!r} (data.parquet_column), but null"
    texts = (text for batch in file.iter_batches(columns=[column]) for text in batch.column(0).to_pylist())
    row = 0
    try:
        for row, text in enumerate(texts, start=1):
            yield Quarantined(path=f"{label}:{row}", reason=reason) if text is None else text
    except _BROKEN_PARQUET as error:
        raise DataCorrupt(
            f"{label}: the corpus changed while it was read: all rows could be read, and then only {row} ({error}); "
            "leave the corpus alone and run again"
        ) from error


def _problem_of_columns(schema: pa.Schema, column: str) -> str | None:
    """Why these are not the columns of a file with exactly one of text that is called `column`, or None."""
    names = ", ".join(schema.names)
    n_columns = schema.names.count(column)
    if n_columns > 1:
        return f"expected one column {column!r} (data.parquet_column), found {n_columns}; columns: {names}"
    if not n_columns or not _is_text(schema.field(column).type):
        return f"no column {column!r} of text (data.parquet_column); columns: {names}"
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
