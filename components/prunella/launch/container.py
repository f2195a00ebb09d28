"""Stages as containers of an engine that speaks Docker's API: Docker itself, or podman's service. DOCKER_HOST names it.

A container gets the command of a local process in the folders of a local process, mounted under the paths they have
outside, as the user who launches and on the host's network: so the ledger's keys, the scratch and the store's address mean
the same inside. Everything else of it is closed: no capability, a read-only root, nothing of the environment but what a
stage reads, or a publication. The name of a stage's container comes from its handle file, and the engine gives a name to one
container only.
"""

import contextlib
import functools
import hashlib
import logging
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import Ulimit

from prunella.errors import ConfigError, PrunellaError
from prunella.launch import engine
from prunella.launch.handle import CONTAINER_VARIABLE, Handle
from prunella.launch.images import WORKER, image_name, image_of
from prunella.logs import PRINT_INTO_VARIABLE
from prunella.scratch import make_folder, scratch_base

if TYPE_CHECKING:
    from prunella.launch.door import Launch

logger = logging.getLogger(__name__)

LABEL = "org.prunella"
#: What of this process's environment a stage reads. Credentials of the store travel here: whoever may ask the engine can
#: read them.
_FOR_STAGES = ("AWS_", "OMP_", "MKL_", "OPENBLAS_", "TOKENIZERS_", "HF_", "NCCL_", "GLOO_", "CUDA_")
_SETTINGS = ("PRUNELLA_CACHE_BYTES", "PRUNELLA_S3_STYLE", "PRUNELLA_PUBLISHED", "PRUNELLA_MLFLOW_UI")
#: How the network is left, in both spellings that programs read.
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
#: Files that the AWS SDK reads, by the variable that names them, and where it looks without. Source: botocore 1.44.
_CREDENTIAL_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_CA_BUNDLE": "",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "",
}
#: What a publication reads besides, each by its name: an environment that also serves MLflow (that of `make stack` does) holds
#: the password of its database under the same prefix. Source: `publishing.py`, `airflow_context.py`, and of MLflow 3.17
#: `utils/credentials.py`, `utils/workspace_context.py` and `store/artifact/s3_artifact_repo.py`, 2026-11.
_FOR_TRACKING = (
    # Where MLflow is, and who we are there.
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_WORKSPACE",
    # The run that is joined.
    "MLFLOW_RUN_ID",
    # The bucket that a server without a proxy for artifacts sends its clients to.
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_S3_IGNORE_TLS",
    "MLFLOW_S3_UPLOAD_EXTRA_ARGS",
    "MLFLOW_S3_EXPECTED_BUCKET_OWNER",
    "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE",
    # Which task of Airflow asks.
    "AIRFLOW_CTX_DAG_ID",
    "AIRFLOW_CTX_DAG_RUN_ID",
    "AIRFLOW_CTX_TASK_ID",
    "AIRFLOW_CTX_TRY_NUMBER",
)
#: An engine that does not answer within this long is away. Source: own choice 2026-11; creating a container on a driver that
#: copies the whole image (vfs) took 20 s.
_ENGINE_TIMEOUT_S = 120
_TAIL_LINES = 50
#: States of a container that does not come back. Source: Docker's API 1.41; podman adds `stopped`.
_OVER = ("exited", "dead", "removing", "stopped")
#: Processes and threads a container may have. Source: own choice 2026-11: far above the ranks, agents and threads of a node;
#: podman 4.3 as root without CAP_SYS_RESOURCE was refused 65,536 although the limit was 96,365.
_PROCESSES = 32_768
#: A command's container that was made this long ago is waited for by nobody. A younger one may be about to start, or have just
#: ended, whoever made it. Source: own choice 2026-11: publications are waited for for minutes.
_FORGOTTEN_AFTER = "1h"
#: Whom programs inside take themselves for: whoever launches is in no list of users there. It is our images' own user.
_USER_NAME = "prunella"
#: The one place a container may write to without a mount: its own.
_TMP = "/tmp"  # noqa: S108


@dataclass(frozen=True, kw_only=True, slots=True)
class Container(Handle):
    """A container, by its name."""

    poll_s: ClassVar[float] = 0.25

    name: str

    @property
    def is_alive(self) -> bool:
        state = _state(self.name)
        return state is not None and state["Status"] not in _OVER

    def send(self, number: signal.Signals) -> None:
        with _engine_errors(f"container {self.name}"), _over_is_fine():
            _engine().api.kill(self.name, signal=number.name)

    def words(self) -> dict[str, Any]:
        return {"container": self.name}

    def keep_output(self, log: Path) -> None:
        with contextlib.suppress(NotFound), _engine_errors(f"container {self.name}"), log.open("ab") as file:
            file.write(_engine().api.logs(self.name, tail=_TAIL_LINES))

    def bury(self) -> None:
        """Remove it, once it is over. How it ended is in the log by then."""
        state = _state(self.name)
        if state is None or state["Status"] not in _OVER:
            return
        logger.info("container_ended name=%s exit=%s oom=%s", self.name, state.get("ExitCode"), state.get("OOMKilled"))
        with _engine_errors(f"container {self.name}"), _over_is_fine():
            _engine().api.remove_container(self.name, v=True)


def start(launch: "Launch") -> Container:
    """Start a stage's container, or the one of its name that somebody made and did not start.

    Raises:
        ConfigError: the image is not there.
        PrunellaError: the engine is away, or refuses.
    """
    name = _name(launch)
    container = _create(
        name,
        image_of(launch.stage),
        launch.command,
        log=launch.log,
        folders=_mounts([*_folders(launch.root), launch.handle.parent], launch.reads),
        environment={CONTAINER_VARIABLE: name, **({"PRUNELLA_NODE": launch.node} if launch.node else {})},
    )
    _start(container)
    return Container(name=name)


def start_command(arguments: list[str], *, log: Path, writes: list[Path]) -> "ContainerProgram":
    """Start a command of ours that is no stage, in the worker's image. Raises as `start`."""
    name = f"prunella-{arguments[0]}-{os.getpid()}-{time.monotonic_ns():x}"
    folders = _mounts([*writes, log.parent, make_folder(scratch_base())], ())
    with _engine_errors(name):
        _remove_forgotten()
    environment = _named(_FOR_TRACKING)
    _start(_create(name, WORKER, arguments, log=log, folders=folders, environment=environment, label="command"))
    return ContainerProgram(Container(name=name))


def _remove_forgotten() -> None:
    """Remove the containers of commands that nobody waits for."""
    try:
        _engine().containers.prune(filters={"label": f"{LABEL}=command", "until": _FORGOTTEN_AFTER})
    except APIError as error:
        if error.status_code != 409:  # what Docker says while another publication does the same
            raise


class ContainerProgram:
    """A started command in a container of its own, as `door.Program` wants it."""

    def __init__(self, handle: Container) -> None:
        self._handle = handle

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while self._handle.is_alive:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self._handle.name, timeout)
            time.sleep(self._handle.poll_s)
        state = _state(self._handle.name)
        self._handle.bury()
        return int(state["ExitCode"]) if state is not None else -1

    def kill(self) -> None:
        """SIGKILL."""
        self._handle.send(signal.SIGKILL)


# ------------------------------------------------------------------------------------------------ what a container gets


def _name(launch: "Launch") -> str:
    mark = hashlib.sha256(str(launch.handle).encode()).hexdigest()[:16]
    return f"prunella-{launch.handle.stem.replace('_', '-')}-{mark}"


def _folders(root: str) -> list[Path]:
    """What a stage writes to: the root, where it is a folder, and scratch."""
    base = make_folder(scratch_base())
    return [base] if "://" in root else [Path(root).absolute(), base]


def _create(
    name: str,
    image: str,
    arguments: list[str],
    *,
    log: Path,
    folders: dict[str, dict[str, str]],
    environment: dict[str, str],
    label: str = "stage",
) -> Any:
    """The container of this name, not started yet; the one that has the name already, if there is."""
    full_name = image_name(image)
    try:
        with _engine_errors(name):
            return _engine().containers.create(
                full_name,
                ["python", "-m", "prunella", *arguments],
                name=name,
                environment={**_environment(), PRINT_INTO_VARIABLE: str(log), **environment},
                user=_user(),
                working_dir=os.getcwd(),  # inputs may be named relative to it
                volumes=folders,
                network_mode="host",
                userns_mode=_user_namespace(),
                labels={LABEL: label},
                tmpfs={} if _TMP in folders else {_TMP: "mode=1777"},
                **_closed(),
            )
    except ImageNotFound as error:
        raise ConfigError(
            f"image {full_name} is not known to the engine; `make images` builds it, or name the registry that has it "
            "with PRUNELLA_IMAGE_PREFIX and pull it"
        ) from error
    except APIError as error:
        # Of a name that is taken Docker says 409 and podman 4.3 says 500: what counts is whether somebody has it.
        with _engine_errors(name), contextlib.suppress(NotFound):
            return _engine().containers.get(name)
        raise PrunellaError(f"container {name}: the engine refused it: {error.explanation}") from error


def _start(container: Any) -> None:
    """Start it, unless somebody did. Raises PrunellaError where it is not started after that, or gone."""
    if container.status != "created":
        return
    try:
        with _engine_errors(container.name):
            container.start()
    except APIError as error:
        state = _state(container.name)
        if state is None or state["Status"] == "created":
            raise PrunellaError(f"container {container.name} could not be started: {error.explanation}") from error


def _closed() -> dict[str, Any]:
    """A stage needs no privilege and writes only where something is mounted. Its launcher watches it, so the engine need not;
    limits are named because an engine's own are refused on some machines. SELinux would keep it out of its mounts, unless they
    were labelled anew, and those are a person's own folders: it is off for the container."""
    return {
        "healthcheck": {"test": ["NONE"]},
        "ulimits": [Ulimit(name=name, soft=soft, hard=hard) for name, (soft, hard) in _limits()],
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", "label=disable"],
    }


def _limits() -> Iterator[tuple[str, tuple[int, int]]]:
    yield "nofile", resource.getrlimit(resource.RLIMIT_NOFILE)
    processes = most_processes()
    yield "nproc", (processes, processes)


def most_processes() -> int:
    """Processes and threads that a container may have here: no engine without root gives more than its user has."""
    allowed = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    return _PROCESSES if allowed == resource.RLIM_INFINITY else min(allowed, _PROCESSES)


def _passed_on(prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def _named(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _environment() -> dict[str, str]:
    from prunella.data_prep.sources import STDLIB_VARIABLE, stdlib_folder

    passed = _passed_on(_FOR_STAGES) | _named((*_SETTINGS, *_PROXIES))
    files = {variable: str(path) for variable, path in _credential_files().items()}
    user = {"HOME": _TMP, "USER": _USER_NAME, "LOGNAME": _USER_NAME}
    own = {"PRUNELLA_SCRATCH": str(scratch_base()), STDLIB_VARIABLE: str(stdlib_folder())}
    return {**passed, **files, **user, **own}


def _mounts(writes: Iterable[Path], reads: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Every folder under the path it has outside. What lies within another is mounted with it."""
    readable = [*reads, *_credential_files().values()]
    read = {str(path.absolute()): {"bind": str(path.absolute()), "mode": "ro"} for path in readable}
    written = {str(path.absolute()): {"bind": str(path.absolute()), "mode": "rw"} for path in writes}
    return {**read, **written}


def _credential_files() -> dict[str, Path]:
    """The AWS SDK's own files that are there, by variable: a container has another home, so each is named to it."""
    named = {variable: os.environ.get(variable) or usual for variable, usual in _CREDENTIAL_FILES.items()}
    paths = {variable: Path(os.path.expanduser(path)).absolute() for variable, path in named.items() if path}
    return {variable: path for variable, path in paths.items() if path.is_file()}


def _user() -> str:
    """Who launches, so that files belong to them. A rootless engine maps them to its containers' root."""
    return "0:0" if _is_rootless() else f"{os.getuid()}:{os.getgid()}"


def _user_namespace() -> str | None:
    """That of this machine, because the network is: Docker that maps users (userns-remap) refuses one without the other. An
    engine without root has its own alone."""
    return None if _is_rootless() else "host"


# ------------------------------------------------------------------------------------------------ the engine


@functools.cache
def _engine() -> docker.DockerClient:
    return docker.from_env(timeout=_ENGINE_TIMEOUT_S)


@functools.cache
def _is_rootless() -> bool:
    with _engine_errors("engine"):
        return engine.is_rootless(_engine())


def _state(name: str) -> dict[str, Any] | None:
    """The engine's word on a container; None when it has none of that name."""
    with _engine_errors(f"container {name}"):
        try:
            found: dict[str, Any] = _engine().api.inspect_container(name)["State"]
        except NotFound:
            return None
        return found


@contextlib.contextmanager
def _over_is_fine() -> Iterator[None]:
    """Nothing can be asked of a container that is over: it is gone (404), or does not run (409; podman 4.3 says 500)."""
    try:
        yield
    except APIError as error:
        if error.status_code not in (404, 409) and "container state improper" not in str(error.explanation):
            raise


@contextlib.contextmanager
def _engine_errors(what: str) -> Iterator[None]:
    """An engine that is away is told from one that says no: the latter's words (APIError) are the caller's business."""
    try:
        yield
    except APIError:
        raise
    except (DockerException, OSError) as error:
        raise PrunellaError(
            f"{what}: the container engine at {os.environ.get('DOCKER_HOST', 'its usual socket')} does not answer ({error}); "
            "start it, or name another with DOCKER_HOST; containers that it did not end (Docker ends them with itself, unless "
            "its live-restore is on) go on, and are found again"
        ) from error
