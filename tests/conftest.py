"""What every test stands on: an environment that is offline, single-threaded and writes nothing outside temporary folders.

The environment is set when this file is imported, before torch, Airflow or MLflow can be, because each reads it once.
`make test-full` passes `--nothing-missing`: a test skipped for want of what a make target brings then counts as failed.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

_SESSION_FOLDER = Path(tempfile.mkdtemp(prefix="prunella-tests-"))
_ENVIRONMENT = {
    # One thread a process: two ranks already fill the machine, and sums keep their order.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # No network, no telemetry.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HOME": str(_SESSION_FOLDER / "huggingface"),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "SCARF_ANALYTICS": "false",
    "DO_NOT_TRACK": "true",
    # Airflow reads these at its first import and would create ~/airflow.
    "AIRFLOW_HOME": str(_SESSION_FOLDER / "airflow"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).resolve().parent.parent / "dags"),
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_SESSION_FOLDER / 'airflow' / 'airflow.db'}",
    "PRUNELLA_SCRATCH": str(_SESSION_FOLDER / "scratch"),
}
os.environ.update(_ENVIRONMENT)
(_SESSION_FOLDER / "airflow").mkdir()

from prunella import config_text  # noqa: E402 - the environment comes first
from prunella.codec import digest  # noqa: E402
from prunella.config import Config, StorageConfig  # noqa: E402
from prunella.ledger import Ledger  # noqa: E402
from prunella.records import ExperimentRecord  # noqa: E402
from prunella.storage import FolderStore, RetryingStore  # noqa: E402

#: How the reason of a skip begins where one of these would have prevented it.
_MAKES = ("make system", "make images", "make orchestrator")
#: Files of over four minutes on two cores, longest first (2026-11).
_LONGEST = (
    "test_kill_series.py",
    "test_bucket.py",
    "test_interruption.py",
    "test_stack.py",
    "test_launchers_and_stores.py",
    "test_pages.py",
    "test_postgres.py",
)
#: A test that waits for the store waits a tenth of a second, not a minute.
_IMPATIENT = StorageConfig(retry_s=0.1, first_delay_s=0.01, max_delay_s=0.02)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nothing-missing",
        action="store_true",
        help=f"a test skipped with a reason that starts with one of these fails: {', '.join(_MAKES)}",
    )


def pytest_configure() -> None:
    """Ctrl-C means what it means on a terminal: a shell that starts the tests in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On several workers the longest files begin first: begun last, one worker would run them while the others wait."""
    if getattr(config, "workerinput", None) is not None:
        items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


def pytest_unconfigure() -> None:
    shutil.rmtree(_SESSION_FOLDER, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_something_is_missing(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_something_is_missing(report, collector.config)
    return report


def _fail_if_something_is_missing(report: Any, config: pytest.Config) -> None:
    if not report.skipped or not config.getoption("--nothing-missing") or not isinstance(report.longrepr, tuple):
        return
    reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    if wanted := next((make for make in _MAKES if reason.startswith(make)), None):
        report.outcome = "failed"
        report.longrepr = f"skipped, and --nothing-missing was given: {reason}; run `{wanted}` first, and see that it is found"


@pytest.fixture(autouse=True)
def _mlflow_is_nowhere_in_particular() -> Iterator[None]:
    """Whoever tells MLflow's client where its server is writes that into the environment, and so into every later test's."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    yield
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """An empty `--root`."""
    (tmp_path / "root").mkdir()
    return str(tmp_path / "root")


@pytest.fixture
def store(root: str) -> FolderStore:
    """The plain object store behind `root`."""
    return FolderStore(root)


@pytest.fixture
def ledger(store: FolderStore) -> Ledger:
    """The ledger of an experiment `demo` that nobody opened yet; it gives up on the store after 0.1 s."""
    return Ledger(RetryingStore(store, _IMPATIENT), "demo")


@pytest.fixture
def opened_ledger(ledger: Ledger) -> Ledger:
    """The ledger of an opened experiment `demo` with the default configuration and no faults."""
    mapping = config_text.to_mapping(Config())
    record = ExperimentRecord(
        name="demo", opened_ns=1, config=mapping, config_digest=digest(mapping), faults=(), versions={"prunella": "test"}
    )
    ledger.put(ledger.experiment_key, record)
    return ledger


@pytest.fixture(scope="session")
def browser_programs() -> tuple[str, str]:
    """Paths of chromium and chromedriver; skips where they are not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("make system: chromium or chromedriver is not installed")
    return chromium, driver
