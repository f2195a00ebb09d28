"""The first pass: which documents there are, which are held out, and the fingerprint of everything that determines the tokens.

A document is held out by its hash alone, so adding documents never moves another from one split to the other. Where chance
holds out none, the document with the smallest hash is taken. The fingerprint covers document hashes in order and every
setting that reaches the tokens; it leaves out paths, workers and time. Whoever reads the corpus after this pass does so
through `read_again`, so that one fingerprint means one tokenizer and one stream of tokens.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import tokenizers

from prunella.codec import canonical_json
from prunella.config import Config
from prunella.data.manifest import HELDOUT, TRAIN, Quarantined
from prunella.data_prep.documents import Corpus, Document, LeftOut, read_documents
from prunella.data_prep.progress import show_progress
from prunella.data_prep.sources import locate, resolve_inputs
from prunella.errors import ConfigError, DataCorrupt
from prunella.storage import Store

logger = logging.getLogger(__name__)

#: Changes whenever the same corpus and settings would give other tokens or shards.
PREP_FORMAT = 1
#: Quarantined inputs named one by one in the log; the manifest names all.
_NAMED_IN_LOG = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What the first pass found. `hashes` are sha256 (32 bytes) of the distinct documents, in order."""

    corpus: Corpus
    fingerprint: str
    hashes: tuple[bytes, ...]
    heldout: frozenset[bytes]
    size_bytes: int
    heldout_bytes: int
    duplicates: int
    quarantined: tuple[Quarantined, ...]
    #: The tokenizer file to load, verbatim; None where one is trained.
    loaded_tokenizer: bytes | None

    def split_of(self, sha256: bytes) -> str:
        """The split of a document."""
        return HELDOUT if sha256 in self.heldout else TRAIN


def take_survey(config: Config, store: Store) -> Survey:
    """Read the whole corpus once.

    Raises:
        ConfigError: an input is missing, unreadable (by `data.on_bad_input`), or the corpus has too few documents.
    """
    loaded_tokenizer = _read_tokenizer(config.data.tokenizer)
    corpus = Corpus(sources=resolve_inputs(config.data.inputs, store), settings=config.data)
    left_out = LeftOut()
    sizes = _sizes(corpus, left_out)
    _report(left_out, len(sizes))
    _require_documents(len(sizes), left_out, config)
    heldout = choose_heldout(tuple(sizes), config.data.heldout_fraction)
    return Survey(
        corpus=corpus,
        fingerprint=fingerprint(config, tuple(sizes), loaded_tokenizer),
        hashes=tuple(sizes),
        heldout=heldout,
        size_bytes=sum(sizes.values()),
        heldout_bytes=sum(sizes[sha256] for sha256 in heldout),
        duplicates=left_out.duplicates,
        quarantined=tuple(left_out.quarantined),
        loaded_tokenizer=loaded_tokenizer,
    )


def _sizes(corpus: Corpus, left_out: LeftOut) -> dict[bytes, int]:
    """Bytes of each distinct document by its sha256, in order. How many there are in all is known at the end."""
    sizes: dict[bytes, int] = {}
    with show_progress("survey") as advance:
        for document in read_documents(corpus, left_out):
            sizes[document.sha256] = document.size_bytes
            advance(document.size_bytes)
    return sizes


def read_again(survey: Survey) -> Iterator[Document]:
    """The surveyed documents in order, each proven to be the one that the fingerprint counts. A reader may stop early.

    Raises:
        ConfigError: as `read_documents`.
        DataCorrupt: the corpus is no longer the one that was surveyed.
    """
    left_out, count = LeftOut(), 0
    for document in read_documents(survey.corpus, left_out):
        if count >= len(survey.hashes) or document.sha256 != survey.hashes[count]:
            raise _changed(survey, left_out, f"document {count} of {len(survey.hashes)} (from 0) is another one")
        yield document
        count += 1
    if count != len(survey.hashes):
        raise _changed(survey, left_out, f"expected {len(survey.hashes)} documents, found {count}")


def _changed(survey: Survey, left_out: LeftOut, what: str) -> DataCorrupt:
    """Names what cannot be read since the survey, where there is such: most often the cause."""
    known = set(survey.quarantined)
    new = next((f" ({bad.path}: {bad.reason})" for bad in left_out.quarantined if bad not in known), "")
    return DataCorrupt(f"the corpus changed while it was read: {what}{new}; leave the corpus alone and run again")


def choose_heldout(hashes: tuple[bytes, ...], fraction: float) -> frozenset[bytes]:
    """The documents whose hash, read as a number in [0, 1), lies below `fraction`; at least one."""
    limit = int(fraction * 2**64)
    heldout = frozenset(sha256 for sha256 in hashes if int.from_bytes(sha256[:8], "big") < limit)
    return heldout or frozenset([min(hashes)])


def fingerprint(config: Config, hashes: tuple[bytes, ...], loaded_tokenizer: bytes | None) -> str:
    """16 hex digits of a sha256 over everything that determines the tokens."""
    trained = {"train_bytes": config.data.tokenizer_train_bytes, "vocab_size": config.model.vocab_size}
    settings = {
        "format": PREP_FORMAT,
        "tokenizers": tokenizers.__version__,
        "tokenizer": trained if loaded_tokenizer is None else hashlib.sha256(loaded_tokenizer).hexdigest(),
        "vocab_size": config.model.vocab_size,
        "heldout_fraction": config.data.heldout_fraction,
        "max_bytes": config.data.max_bytes,
        "shard_tokens": config.data.shard_tokens,
        "documents": len(hashes),
    }
    total = hashlib.sha256(canonical_json(settings))
    for sha256 in hashes:
        total.update(sha256)
    return total.hexdigest()[:16]


def _read_tokenizer(name: str | None) -> bytes | None:
    if name is None:
        return None
    path, _ = locate("data.tokenizer", name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"data.tokenizer: {name!r}: {error.strerror}; give the path of a tokenizer.json, or none to train one"
        ) from error


def _report(left_out: LeftOut, documents: int) -> None:
    counts = (documents, left_out.duplicates, len(left_out.quarantined))
    logger.info("corpus_surveyed documents=%s duplicates=%s quarantined=%s", *counts)
    for bad in left_out.quarantined[:_NAMED_IN_LOG]:
        logger.warning("input_quarantined path=%s reason=%s", bad.path, bad.reason)
    unnamed = len(left_out.quarantined) - _NAMED_IN_LOG
    if unnamed > 0:
        logger.warning("inputs_quarantined more=%s (the manifest names them)", unnamed)


def _require_documents(documents: int, left_out: LeftOut, config: Config) -> None:
    if documents >= 2:
        return
    first = "".join(f" (first: {bad.path}: {bad.reason})" for bad in left_out.quarantined[:1])
    raise ConfigError(
        f"data.inputs {list(config.data.inputs)}: expected at least 2 documents with text (one to train on, one to hold out), "
        f"found {documents}, {left_out.duplicates} duplicates and {len(left_out.quarantined)} unreadable inputs{first}; "
        f"a text file is one document: split it, use .jsonl, or raise data.max_bytes ({config.data.max_bytes})"
    )
