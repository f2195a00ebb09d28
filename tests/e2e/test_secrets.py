"""What the environment holds in confidence is found nowhere: not in records, reports, MLflow, logs or scratch."""

from e2e.campaign import Campaign
from e2e.conftest import SECRET


def test_no_secret_of_the_environment_is_written_anywhere(unbroken: Campaign) -> None:
    files = [path for path in unbroken.folder.rglob("*") if path.is_file()]

    kinds = {path.suffix for path in files}
    assert {".json", ".log", ".db", ".html"} <= kinds, "too little was looked at"
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
