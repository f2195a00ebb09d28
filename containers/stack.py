"""Start the whole local stack (`make stack`): PostgreSQL, an S3 server, MLflow's server, and Airflow with stages as containers.

The first time it writes prunella.env, with random passwords and ports that are free; that file is the one place where the
stack is moved to a bucket, a PostgreSQL and data of your own. It names the engine too, one for services and stages: where that
is podman, compose.yaml goes to podman-compose, else to Docker's compose. What compose.yaml asks for, that file alone answers,
never the shell: half of the stack is told by compose, the other half reads the file itself, and both must mean the same.

Said again after an edit or another `make images` it makes every service anew, and ends those that the file names no more.
Other words go to compose as they are: `make stack ARGS=down`, `make stack ARGS="logs airflow"`.
"""

import argparse
import hashlib
import os
import re
import secrets
import shutil
import string
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import docker
import yaml
from docker.context import ContextAPI
from docker.errors import DockerException
from dotenv import dotenv_values

from prunella.data_prep.sources import stdlib_folder
from prunella.errors import PrunellaError
from prunella.launch.container import most_processes
from prunella.launch.engine import is_rootless
from prunella.launch.images import PREFIX_VARIABLE, WORKER, image_name
from prunella.node_processes import free_port
from prunella.orchestration import live
from prunella.orchestration.airflow_api import AirflowApi

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
COMPOSE = HERE / "compose.yaml"
#: A variable that compose.yaml asks for.
_ASKED = re.compile(r"\$\{(\w+)")
#: Marks every service with the settings and images that it was made with.
SETTINGS_VARIABLE = "PRUNELLA_SETTINGS"
_UNIX = "unix://"
#: Whatever names an engine to the clients of Docker and podman, or says how it is reached.
_ENGINE_NAMES = (
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "CONTAINER_HOST",
    "CONTAINER_CONNECTION",
)
SOCKET_VARIABLE = "PRUNELLA_ENGINE_SOCKET"
#: Folders of this machine that the file names. Docker makes an empty one of root's in place of one that is not there.
FOLDERS = ("PRUNELLA_FOLDER", "PRUNELLA_DATA_FOLDER")
#: The services that run where COMPOSE_PROFILES names them, by the profile of the same name.
OPTIONAL = ("postgres", "s3", "mlflow")
#: Images of ours that services run.
IMAGES = ("airflow", WORKER)
UP = ["up", "--detach"]
#: Below the stack's folder: a folder each for what its services keep.
KEPT = ("airflow", "corpus", "postgres", "published", "s3", "scratch")
PORTS = {"airflow": 8080, "mlflow": 5000, "postgres": 5432, "s3": 7070}
#: PostgreSQL refuses to run as root, so for root the stack's files belong to the user of our images.
USER_OF_IMAGES = 10001
#: Time for Airflow to answer, migrations of an empty database included. Source: own measurement 2026-11, 60 s, tripled.
START_TIMEOUT_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", type=Path, default=REPOSITORY / "prunella.env", help="the file; written when it is not there")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "var" / "stack", help="where a new one keeps its files")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=f"for compose; {' '.join(UP)!r} by default")
    given = parser.parse_args()
    file = given.env.resolve()
    if not file.exists():
        write_settings(file, given.folder.resolve())
        print(f"wrote {file}: edit it to use a bucket, a PostgreSQL or data of your own, then run this again")
    environment, words = environment_of(file), given.words or UP
    engine, compose = _compose(file, environment)
    ids = image_ids(engine, environment)
    if words[0] == "up":
        check(file, environment, ids)
    environment[SETTINGS_VARIABLE] = mark(file, ids)
    if words[0] in ("up", "down"):
        end_unnamed(engine, environment)
    code = subprocess.run([*compose, "--env-file", str(file), "--file", str(COMPOSE), *words], env=environment).returncode
    if code:
        sys.exit(code)
    if words == UP:
        print(_wait_until_ready(file))


def said_in(file: Path) -> dict[str, str]:
    """What the file says, to the letter: a `$` is one."""
    return {name: value for name, value in dotenv_values(file, interpolate=False).items() if value is not None}


def environment_of(file: Path) -> dict[str, str]:
    """What compose and the engine's client are started with: this shell, but for what the file decides. Left to itself, compose
    prefers the shell, and a client the engine that the shell names."""
    said = said_in(file)
    decided = {*_ASKED.findall(COMPOSE.read_text()), *said, *_ENGINE_NAMES}
    kept = {name: value for name, value in os.environ.items() if name not in decided and not name.startswith("COMPOSE_")}
    engine = f"{_UNIX}{said.get(SOCKET_VARIABLE, '')}"
    return {**kept, **said, "DOCKER_HOST": engine, "CONTAINER_HOST": engine}


def image_names(environment: Mapping[str, str]) -> list[str]:
    """Our images that services run."""
    prefix, version = environment.get(PREFIX_VARIABLE, ""), environment.get("PRUNELLA_VERSION", "")
    return [image_name(image, prefix, version) for image in IMAGES]


def image_ids(engine: str, environment: Mapping[str, str]) -> list[str]:
    """Of these images, as the engine has them; empty for one that it has not."""
    asked = [[engine, "image", "inspect", "--format={{.Id}}", name] for name in image_names(environment)]
    return [subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip() for command in asked]


def check(file: Path, environment: Mapping[str, str], ids: Iterable[str]) -> None:
    """Ends where the file names a folder that is not there, or an image that the engine has not: nobody but us makes those."""
    for name in FOLDERS:
        path = environment.get(name, "")
        if not os.path.isdir(path):
            sys.exit(f"make stack: {name} in {file}: expected a folder, found none at {path!r}; mend the line, or make it")
    for image, id_ in zip(image_names(environment), ids, strict=True):
        if not id_:
            cure = f"pull {image} there" if environment.get(PREFIX_VARIABLE) else "run: make images"
            sys.exit(f"make stack: expected {image} in the engine at {environment['DOCKER_HOST']}, found none; {cure}")


def mark(file: Path, images: Iterable[str]) -> str:
    """Another one after each edit, of the file or of compose.yaml, and for each other build of our images, of which
    podman-compose sees only the name. It is the same for all services, so that either all of them are made anew or none."""
    ids = " ".join(images)
    return hashlib.sha256(file.read_bytes() + COMPOSE.read_bytes() + ids.encode()).hexdigest()[:16]


def end_unnamed(engine: str, environment: Mapping[str, str]) -> None:
    """End the services that the file names no more, which no compose does: a profile that is off is no orphan to Docker's, and
    podman-compose removes all of a project with its orphans."""
    project = environment.get("COMPOSE_PROJECT_NAME") or yaml.safe_load(COMPOSE.read_text())["name"]
    named = environment.get("COMPOSE_PROFILES", "").split(",")
    for service in (service for service in OPTIONAL if service not in named):
        labels = {"project": project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{label}={value}" for label, value in labels.items()]
        command = [engine, "ps", "--all", "--quiet", *filters]
        listed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        for container in listed.stdout.split():
            print(f"{service} is not in COMPOSE_PROFILES any more: ended")
            for word in ("stop", "rm"):
                subprocess.run([engine, word, container], env=environment, check=True, stdout=subprocess.DEVNULL)


def write_settings(file: Path, folder: Path) -> None:
    """The file that says everything, readable by its owner only, and the folders it names."""
    user = (os.getuid() or USER_OF_IMAGES, os.getgid() or USER_OF_IMAGES)
    engine = _engine_socket(user[0])
    namespace = _user_namespace(engine)
    _make_folders(folder, *user)
    values = {
        "folder": folder,
        "user": "{}:{}".format(*user),
        "userns": namespace,
        "processes": most_processes(),
        "socket": engine,
        "socket_group": engine.stat().st_gid,
        "prefix": os.environ.get(PREFIX_VARIABLE, ""),
        "version": tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"],
        "file": file,
        **{f"{name}_secret": secrets.token_hex(16) for name in ("s3", "postgres")},
        **{f"{name}_port": free_port(usual) for name, usual in PORTS.items()},
    }
    text = string.Template((HERE / "stack.env.template").read_text()).substitute(values)
    file.touch(mode=0o600)
    file.write_text(text)


def _make_folders(folder: Path, user: int, group: int) -> None:
    """What the services write to, and the demonstration's corpus: the source text of Python's standard library."""
    for name in KEPT:
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    ignore = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", "*.so", "*.a", "*.o")
    shutil.copytree(stdlib_folder(), folder / "corpus", ignore=ignore, dirs_exist_ok=True)
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, group, follow_symlinks=False)


def _engine_socket(user: int) -> Path:
    """The socket of the engine of services and stages, which Airflow's container must be able to use: the one that the shell
    names, else that of the current Docker context, else a usual one."""
    named = os.environ.get("DOCKER_HOST", "")
    usual = ["/var/run/docker.sock", "/run/podman/podman.sock", f"/run/user/{os.getuid()}/podman/podman.sock"]
    others = [ContextAPI.kwargs_from_context().get("base_url", ""), *(f"{_UNIX}{path}" for path in usual)]
    addresses = [named] if named.startswith(_UNIX) else others
    candidates = [Path(address.removeprefix(_UNIX)) for address in dict.fromkeys(addresses) if address.startswith(_UNIX)]
    found = next((path for path in candidates if _is_socket(path)), None)
    if found is None:
        sys.exit(
            f"make stack: expected the socket of a container engine at {' or '.join(map(str, candidates))}, found none; start "
            "Docker, or podman's (systemctl enable --now podman.socket), or name it: DOCKER_HOST=unix:///PATH"
        )
    status = found.stat()
    if status.st_uid != user and status.st_mode & 0o060 != 0o060:
        sys.exit(
            f"make stack: {found}: expected a socket of user {user} or one that its group may use, found mode "
            f"{status.st_mode & 0o777:o} of user {status.st_uid}; run: chmod g+rw {found}"
        )
    return found


def _is_socket(path: Path) -> bool:
    """Whether a socket is there and within reach: Debian lets nobody but root look into /run/podman."""
    try:
        return path.is_socket()
    except PermissionError:
        return False


def _user_namespace(path: Path) -> str:
    """Where the services take their users from: `host` or, of podman without root, `keep-id`. There a container's users but
    root are strangers to the stack's files and the engine's socket, unless whoever runs it keeps the number it has outside.
    Root would own them, but PostgreSQL refuses to run as root."""
    with _answering(path) as engine:
        if not is_rootless(engine):
            return "host"
        if not _is_podman(engine):
            sys.exit(
                f"make stack: {path}: expected podman, or Docker as root, found Docker without root, which cannot "
                "give a container the user who runs it; name another engine: DOCKER_HOST=unix:///PATH"
            )
    return "keep-id"


@contextmanager
def _answering(socket: Path) -> Iterator[docker.DockerClient]:
    """The engine that listens there; ends where none does."""
    try:
        with closing(docker.DockerClient(base_url=f"{_UNIX}{socket}")) as engine:
            yield engine
    except (DockerException, OSError) as error:
        sys.exit(f"make stack: {socket}: expected a container engine that answers, found none ({error}); start it, try again")


def _is_podman(engine: docker.DockerClient) -> bool:
    return any(part["Name"] == "Podman Engine" for part in engine.version().get("Components") or [])


def _compose(file: Path, environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """The client of the engine that runs the stages, and what understands compose.yaml for it. Another engine's would put the
    services elsewhere."""
    socket = Path(environment.get(SOCKET_VARIABLE, ""))
    if not _is_socket(socket):
        sys.exit(f"make stack: {SOCKET_VARIABLE} in {file}: expected an engine's socket, found none at {socket}; start it")
    with _answering(socket) as engine:
        is_podman = _is_podman(engine)
    podman = (["podman", "--version"], [sys.executable, "-m", "podman_compose"])
    asked, compose = podman if is_podman else (["docker", "compose", "version"], ["docker", "compose"])
    if not shutil.which(asked[0]) or subprocess.run(asked, env=environment, capture_output=True).returncode:
        cure = "podman (make system)" if is_podman else "Docker's client, and its plugin `compose`"
        sys.exit(f"make stack: {socket}: expected that `{' '.join(asked)}` answers for this engine, found none; install {cure}")
    return asked[0], compose


def _wait_until_ready(file: Path) -> str:
    """Wait for Airflow, and say where everything is."""
    values = said_in(file)
    settings = live.LiveSettings(
        folder=Path(values["PRUNELLA_FOLDER"]) / "airflow",
        root=values["PRUNELLA_ROOT"],
        airflow_port=int(values["PRUNELLA_AIRFLOW_PORT"]),
        mlflow_port=None,
        mlflow_server=values.get("MLFLOW_TRACKING_URI"),
    )
    try:
        _wait_for_password(settings)
        api = AirflowApi(settings.airflow_url, live.USER, live.password(settings))
        api.wait_until_ready("pretrain_segment", START_TIMEOUT_S)
    except PrunellaError as error:
        sys.exit(f"make stack: {error}\nwhat the services say: make stack ARGS=logs")
    return live.describe(settings)


def _wait_for_password(settings: live.LiveSettings) -> None:
    """Airflow's container makes its own password, before anything else."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (settings.home / "passwords.json").exists():
        if time.monotonic() > deadline:
            raise PrunellaError(f"Airflow's container made no password in {settings.home} within {START_TIMEOUT_S:g} s")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
