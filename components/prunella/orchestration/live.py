"""A live Airflow (and, if wanted, MLflow's pages) on this machine, bound to loopback, on ports that are free.

The local executor, on SQLite in the folder, or on the database that PRUNELLA_DATABASE names, where several schedulers may
share the work. Logs and a random password lie in one folder and survive restarts. The ledger lies in the folder too, unless a
root was named, and MLflow's pages show the store beside what is published of it, unless there is a server already.
"""

import base64
import contextlib
import fcntl
import json
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunella.errors import ConfigError
from prunella.launch.local import interpreter
from prunella.node_processes import free_port
from prunella.orchestration import airflow_home, scheduling
from prunella.orchestration.publishing import published_root
from prunella.orchestration.services import Service, Supervisor
from prunella.storage import create_root, prove_root

logger = logging.getLogger(__name__)

USER = "admin"
HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveSettings:
    """One folder and its ports.

    Args:
        root: where the ledger lies: a folder, or a bucket.
        mlflow_port: None runs no MLflow server.
        mlflow_server: address of a tracking server that is there already.
        database: address of Airflow's database, as SQLAlchemy writes it; None is a SQLite file in the folder.
        schedulers: how many share the work. SQLite allows one.
        python: the interpreter of Airflow's programs. It needs no torch: stages run under PRUNELLA_PYTHON.
    """

    folder: Path
    root: str
    airflow_port: int
    mlflow_port: int | None
    mlflow_server: str | None = None
    database: str | None = None
    schedulers: int = 1
    python: str = sys.executable

    @property
    def airflow_url(self) -> str:
        return f"http://{HOST}:{self.airflow_port}"

    @property
    def mlflow_url(self) -> str | None:
        """MLflow's pages: those of ours, or of the server that is there already."""
        if self.mlflow_port:
            return f"http://{HOST}:{self.mlflow_port}"
        return self.mlflow_server if self.mlflow_server and self.mlflow_server.startswith("http") else None

    @property
    def home(self) -> Path:
        return self.folder / "airflow"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{published_root(self.root) / 'mlflow.db'}"


def settings_for(folder: Path, *, with_mlflow: bool, root: str | None = None, airflow_port: int | None = None) -> LiveSettings:
    """Settings on ports that are free now, with the tracking server and the database that the environment names.

    MLflow's pages keep their port as long as it is free: Airflow keeps the links to them for good.

    Args:
        with_mlflow: run MLflow's pages too, unless there is a tracking server already.
        root: where the ledger lies; in the folder by default.
        airflow_port: where the pages listen, if that matters.
    """
    mlflow_server = os.environ.get("MLFLOW_TRACKING_URI") or None
    return LiveSettings(
        folder=folder,
        root=root or str(folder / "root"),
        airflow_port=airflow_port or free_port(),
        mlflow_port=_mlflow_port(folder) if with_mlflow and not mlflow_server else None,
        mlflow_server=mlflow_server,
        database=os.environ.get("PRUNELLA_DATABASE") or None,
    )


def _port_note(folder: Path) -> Path:
    """Where the port of MLflow's pages is kept."""
    return folder / "mlflow-port"


def _mlflow_port(folder: Path) -> int:
    """The port that MLflow's pages had in this folder, or another where somebody has it."""
    note = _port_note(folder)
    text = note.read_text().strip() if note.exists() else ""
    before = int(text) if text.isdecimal() else 0
    port = free_port(before)
    if before not in (0, port):
        logger.warning("mlflow_port_taken port=%s instead=%s (links that Airflow has kept lead to the first)", before, port)
    return port


@contextlib.contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """For the time of the block the folder is ours; the kernel gives back that of a process that died.

    Raises:
        ConfigError: somebody works there already, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise ConfigError(f"--dir {folder}: cannot be worked in ({error.strerror}); choose another folder") from error
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"--dir {folder}: a `prunella up` or a demonstration is at work there; end it with Ctrl-C, or choose another"
            ) from error
        yield


def password(settings: LiveSettings) -> str:
    """The password of `admin`, made once a folder."""
    return _secrets(settings)["password"]


def _secrets(settings: LiveSettings) -> dict[str, str]:
    path = settings.home / "secrets.json"
    if not path.exists():
        settings.home.mkdir(parents=True, exist_ok=True)
        made = {
            "password": secrets.token_urlsafe(9),
            "jwt": secrets.token_hex(32),
            "session": secrets.token_hex(32),
            "fernet": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(made))
    found: dict[str, str] = json.loads(path.read_text())
    return found


def environment(settings: LiveSettings) -> dict[str, str]:
    """The environment of every Airflow process. The three addresses must move together."""
    known = _secrets(settings)
    passwords = settings.home / "passwords.json"
    passwords.touch(mode=0o600)
    passwords.write_text(json.dumps({USER: known["password"]}))
    variables = airflow_home.environment(settings.home) | {
        "PRUNELLA_ROOT": settings.root,
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": str(settings.airflow_port),
        "AIRFLOW__API__BASE_URL": settings.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": known["session"],
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{settings.airflow_url}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__FERNET_KEY": known["fernet"],
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__API_AUTH__JWT_SECRET": known["jwt"],
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        # Each scheduler looks after the tasks that it queued; those of a dead one wait for this look, 300 s by default [s].
        # Source: own choice 2026-11: as long as Airflow waits for a word of a scheduler before it takes it for dead.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    }
    if settings.mlflow_url:
        variables["PRUNELLA_MLFLOW_UI"] = settings.mlflow_url
    if settings.database:
        variables["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = settings.database
    return variables


#: Airflow's programs. Their log servers, which would listen on every interface, stay off: the page reads the shared folder.
_AIRFLOW: dict[str, tuple[str, ...]] = {
    "api-server": (),
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}


def services(settings: LiveSettings) -> tuple[Service, ...]:
    """The programs of a live Airflow, and of MLflow where it has a port."""
    variables = environment(settings)
    found = [
        Service(name=name, command=(settings.python, "-m", "airflow", program, *options), environment=variables)
        for program, options in _AIRFLOW.items()
        for name in _names(program, settings)
    ]
    if settings.mlflow_port:
        found.append(Service(name="mlflow", command=_mlflow_command(settings), environment=_MLFLOW_ENVIRONMENT))
    return tuple(found)


def _names(program: str, settings: LiveSettings) -> list[str]:
    """Names of the services that run a program."""
    return [program, *(f"{program}-{n}" for n in range(1, settings.schedulers if program == "scheduler" else 1))]


_MLFLOW_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _mlflow_command(settings: LiveSettings) -> tuple[str, ...]:
    published_root(settings.root).mkdir(parents=True, exist_ok=True)
    _port_note(settings.folder).write_text(str(settings.mlflow_port))
    store = ("--backend-store-uri", settings.tracking_uri, "--workers", "1")
    return (interpreter(), "-m", "mlflow", "server", *store, "--host", HOST, "--port", str(settings.mlflow_port))


def start(settings: LiveSettings) -> Supervisor:
    """The supervisor of a live Airflow, not yet entered.

    Raises:
        ConfigError: the root cannot hold a ledger, or Airflow lacks the driver of its database.
        PrunellaError: the root does not answer, or Airflow's database cannot be brought up to date.
    """
    if settings.database:
        airflow_home.check_drivers(settings.database, settings.python)
    create_root(settings.root)
    prove_root(settings.root, is_sole_writer=True)  # Airflow starts one of two runs with one id
    variables = environment(settings)
    if settings.database:
        airflow_home.migrate(variables, settings.python)
    else:
        airflow_home.prepare(settings.home)
    if slots := scheduling.node_slots():
        airflow_home.make_pool(scheduling.NODE_POOL, slots, variables, settings.python)
    return Supervisor(services(settings), settings.folder / "logs")


def describe(settings: LiveSettings) -> str:
    """Addresses and credentials, for people."""
    lines = [f"Airflow  {settings.airflow_url}   user {USER}   password {password(settings)}"]
    if settings.mlflow_url:
        lines.append(f"MLflow   {settings.mlflow_url}")
    lines.append(f"ledger   {settings.root}")
    return "\n".join(lines)


def scratch_environment(settings: LiveSettings) -> None:
    """Keep the scratch of live runs in their folder, for everything this process starts."""
    os.environ.setdefault("PRUNELLA_SCRATCH", str(settings.folder / "scratch"))
