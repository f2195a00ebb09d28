"""A corpus that changes while it is read: one clear error, never other tokens under the same fingerprint."""

import contextlib
import logging
from functools import partial
from pathlib import Path

import pytest

from prunella.errors import DataCorrupt


class Acting(logging.Handler):
    """Does something as soon as an event is logged."""

    def __init__(self, actions):
        super().__init__()
        self._actions = actions

    def emit(self, record):
        act = self._actions.get(record.getMessage().partition(" ")[0])
        if act is not None:
            act()


@contextlib.contextmanager
def acting(actions):
    logger, handler = logging.getLogger("prunella"), Acting(actions)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
def twins(open_on, corpus):
    """The same experiment twice: one whose corpus changes, one that nobody disturbs."""
    return [open_on(name, f'data.inputs=["{corpus}"]') for name in ("disturbed", "undisturbed")]


def write_another_text(path):
    path.write_text("another text")


@pytest.mark.parametrize("spoil", [Path.unlink, write_another_text])
@pytest.mark.parametrize("healed_at", ["tokenizer_trained", "nothing"])
def test_a_tokenizer_is_trained_on_the_surveyed_text_or_not_at_all(twins, corpus, spoil, healed_at):
    disturbed, undisturbed = twins
    path = corpus / "000.txt"
    text = path.read_bytes()
    actions = {"corpus_surveyed": partial(spoil, path), healed_at: partial(path.write_bytes, text)}

    with acting(actions), pytest.raises(DataCorrupt, match="changed while it was read: document 0 of 40"):
        disturbed.prepare()
    left_behind = disturbed.files()
    path.write_bytes(text)
    record = disturbed.prepare()

    assert left_behind == {}
    assert record.manifest_sha256 == undisturbed.prepare().manifest_sha256
    assert disturbed.files() == undisturbed.files()


def test_the_error_names_what_cannot_be_read_any_more(experiment, corpus):
    path = corpus / "000.txt"

    with acting({"corpus_surveyed": path.unlink}), pytest.raises(DataCorrupt) as caught:
        experiment.prepare()

    assert f"({path}: expected a regular file" in str(caught.value)
    assert "leave the corpus alone and run again" in str(caught.value)


def test_a_document_that_is_lost_before_the_last_pass_costs_a_run_and_no_token(twins, corpus):
    disturbed, undisturbed = twins
    path = corpus / "039.txt"
    text = path.read_bytes()
    lost = {"dataset_build_started": partial(path.unlink, missing_ok=True)}

    with acting(lost), pytest.raises(DataCorrupt, match="expected 40 documents, found 39"):
        disturbed.prepare()
    path.write_bytes(text)
    disturbed.prepare()
    undisturbed.prepare()

    assert disturbed.files() == undisturbed.files()
