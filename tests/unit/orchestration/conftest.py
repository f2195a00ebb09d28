"""What several tests of orchestration want: somebody who is told."""

from collections.abc import Iterator

import pytest

from prunella.orchestration.notifier import WEBHOOK
from unit.orchestration.mailbox import Mailbox


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    """A webhook that takes every letter, and is configured."""
    made = Mailbox()
    monkeypatch.setenv(WEBHOOK, made.address)
    yield made
    made.server.shutdown()
