"""The unbroken experiment that every healed one is compared with: run once a session."""

from pathlib import Path

import pytest

from e2e.campaign import Campaign, assert_complete


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """The experiment that nothing happened to."""
    campaign = Campaign(tmp_path_factory.mktemp("unbroken"))
    summary = assert_complete(campaign.run(), campaign)
    assert summary["incidents"] == []
    return campaign


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A new experiment."""
    return Campaign(tmp_path / "campaign")
