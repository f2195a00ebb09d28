"""What is in our images, and what must never be. Their contents are looked at inside the built images, and as their engine has
them: it reads every file, whoever may."""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import ContainerError

from engine import engine_with, files_in, in_image, unstarted
from prunella.launch.images import image_name

pytestmark = pytest.mark.slow
IMAGES = ("trainer", "worker", "airflow")
#: Libraries that an image must not have: what it does not do, and what would make it big.
WITHOUT = {
    "trainer": ("airflow", "pip"),
    "worker": ("airflow", "torch", "lm_eval", "pip"),
    "airflow": ("torch", "kfp", "pandas", "lm_eval", "pip"),
}
LOCKS = {"trainer": "component", "worker": "worker", "airflow": "orchestrator"}
#: Prints how many modules are compiled, and which of them Python would compile again because their source is of another time.
_COMPILED = """
import importlib.util, pathlib, struct, sys
compiled, stale = 0, []
for source in pathlib.Path(sys.prefix).rglob("*.py"):
    found = pathlib.Path(importlib.util.cache_from_source(source))
    if found.exists():
        compiled += 1
        flags, time_s, size = struct.unpack("<III", found.read_bytes()[4:16])
        if not flags and (time_s, size) != (int(source.stat().st_mtime), source.stat().st_size):
            stale.append(str(source))
print(compiled, *stale)
"""
#: What an index of PyTorch's own adds to the version in the lock, such as `+cpu`.
_LOCAL_LABEL = re.compile(r"(?<=^pkg:pypi/torch@)([^%+]+)(?:%2B|\+).*")
_SECRETS = ("PASSWORD", "SECRET", "TOKEN", "CREDENTIAL", "PRIVATE KEY")
#: Folders that a build leaves empty: what it worked in, and homes.
_EMPTY = ("/root", "/home", "/tmp", "/wheels", "/package", "/opt/package", "/opt/pip")
#: What a base image may have there: Debian 12's own, and which hosts wget spoke to, in a base made with it. Source: the base
#: made of Debian packages, 2026-11.
_OF_THE_BASE = {"/root/.bashrc", "/root/.profile", "/root/.wget-hsts"}
#: Files and folders of a person's or a build's credentials, and of what somebody typed.
_CREDENTIAL_FILES = {
    ".env",
    "prunella.env",
    ".netrc",
    "_netrc",
    ".git-credentials",
    ".pypirc",
    ".npmrc",
    ".aws",
    ".ssh",
    ".docker",
    ".kube",
} | {".git", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".bash_history", ".python_history"}
#: Where a build writes, and where it would leave a setting of its own.
_WRITTEN = ("/opt/", "/etc/", "/root/", "/home/", "/tmp/", "/srv/", "/var/tmp/", "/usr/local/etc/")
#: Private keys, ids of keys of AWS, tokens of GitHub.
_KEY = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{20}|\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b"
)
#: As in `index-url = https://user:password@host/`.
_PASSWORD = re.compile(rb"://[^/:@\s\"']+:[^/@\s\"']+@")


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    with engine_with(*IMAGES):
        yield


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_in_particular_and_says_what_it_is(image: str) -> None:
    made = docker.from_env().images.get(image_name(image))

    found = made.attrs["Config"]

    assert found["User"] == "10001:10001"
    assert found["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert found["Labels"]["org.opencontainers.image.version"] == image_name(image).rpartition(":")[2]
    assert any("HEALTHCHECK" in layer["CreatedBy"] for layer in made.history()), "podman's API shows it nowhere else"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_file_within_its_users_reach_that_changes_who_runs_it(image: str) -> None:
    found = in_image(image, "sh", "-c", "find / -xdev -type f -perm /6000 2>/dev/null; find /usr -name bin; true")

    assert "/usr/bin" in found.split(), "the search saw something"
    assert [path for path in found.split() if not path.endswith("/bin")] == []


@pytest.mark.parametrize("image", IMAGES)
def test_no_layer_was_made_with_a_secret(image: str) -> None:
    made = docker.from_env().images.get(image_name(image))

    words = json.dumps([made.history(), made.attrs["Config"]["Env"]]).upper()

    assert [secret for secret in _SECRETS if secret in words] == []


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_file_of_credentials_no_secret_of_its_builder_and_nothing_left_behind(image: str) -> None:
    with unstarted(image) as made:
        files = list(files_in(made))

    names = {path for path, _ in files}
    assert {"/etc/passwd", "/opt/prunella/bin/python"} <= names, "too little was looked at"
    assert any(path.endswith("/prunella/__init__.py") and content for path, content in files), "too little was looked at"
    assert leaks(files) == []


def test_whatever_leaked_into_an_image_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "the-token-of-a-build"
    monkeypatch.setenv("PRIVATE_INDEX_TOKEN", token)
    leaked = {
        "/root/.netrc": "machine index.example login me",
        "/home/me/notes": "left behind",
        "/opt/prunella/.aws/credentials": "[default]",
        "/etc/pip.conf": "[global]\nindex-url = https://me:sesame@index.example/simple",
        "/etc/build": f"made with {token}",
        "/opt/prunella/lib/python3.11/site-packages/prunella/built.py": f"TOKEN = {token!r}",
        "/etc/ssl/private/key": f"-----BEGIN RSA PRIVATE KEY-----\n{'A' * 64}",
    }

    with unstarted("airflow") as made:
        made.put_archive("/", archive_of(leaked))
        found = leaks(files_in(made))

    assert leaked.keys() <= set(found)
    assert set(found) - leaked.keys() <= {"/home/me", "/opt/prunella/.aws"}, "the folders that hold them"


def leaks(files: Iterable[tuple[str, bytes]]) -> list[str]:
    """Paths of the files of an image that must not be there, or hold what must not."""
    secrets = [value.encode() for name, value in os.environ.items() if is_secret(name, value)]
    return [path for path, content in files if must_not_be(path) or holds_a_secret(path, content, secrets)]


def is_secret(name: str, value: str) -> bool:
    """Whether a variable of the builder's environment holds what nobody else should know. Shorter words are everywhere."""
    return len(value) >= 8 and re.search("PASSWORD|SECRET|TOKEN|CREDENTIAL|API_?KEY|ACCESS_?KEY", name.upper()) is not None


def must_not_be(path: str) -> bool:
    """Whether the path alone says that it does not belong into an image."""
    is_left = any(path.startswith(f"{folder}/") for folder in _EMPTY) and path not in _OF_THE_BASE
    return is_left or not _CREDENTIAL_FILES.isdisjoint(path.split("/"))


def holds_a_secret(path: str, content: bytes, secrets: list[bytes]) -> bool:
    """Whether a file of a place that a build writes to has a secret in it. Libraries of others bring keys for their tests, and
    source code writes addresses down as examples: in those a secret of the builder counts."""
    if not path.startswith(_WRITTEN):
        return False
    is_foreign = "/site-packages/" in path and "/site-packages/prunella" not in path
    has_key = not is_foreign and _KEY.search(content) is not None
    has_password = not is_foreign and not path.endswith((".py", ".pyc")) and _PASSWORD.search(content) is not None
    return has_key or has_password or any(secret in content for secret in secrets)


def archive_of(files: dict[str, str]) -> bytes:
    """Files as a tar archive, each for its owner only."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(text.encode()), 0o600
            archive.addfile(entry, io.BytesIO(text.encode()))
    return written.getvalue()


# ------------------------------------------------------------------------------------------------ what an engine asks of it


#: What makes the health check of an image succeed, and what makes it fail.
HEALTH: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "trainer": ({}, {"PYTHONHOME": "/nowhere"}),
    "worker": ({}, {"PYTHONHOME": "/nowhere"}),
    "airflow": (
        {"AIRFLOW_HOME": "/tmp", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////tmp/airflow.db"},
        {"AIRFLOW_HOME": "/tmp", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg2://a:b@127.0.0.1:1/none"},
    ),
}


@pytest.mark.parametrize(("image", "well", "ill"), [(image, *HEALTH[image]) for image in IMAGES], ids=IMAGES)
def test_the_health_check_of_an_image_tells_well_from_ill(image: str, well: dict[str, str], ill: dict[str, str]) -> None:
    command = health_command(image)

    in_image(image, *command, environment=well)
    with pytest.raises(ContainerError) as failed:
        in_image(image, *command, environment=ill)

    assert failed.value.exit_status == 1


def health_command(image: str) -> list[str]:
    """What an engine would run; podman's API has it in the history only."""
    made = docker.from_env().images.get(image_name(image))
    if known := made.attrs["Config"].get("Healthcheck"):
        return list(known["Test"][1:])
    (line,) = [layer["CreatedBy"] for layer in made.history() if "HEALTHCHECK" in layer["CreatedBy"]]
    return list(json.loads(line.partition(" CMD ")[2]))


# ------------------------------------------------------------------------------------------------ what it is made of


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_our_package_and_none_of_what_belongs_elsewhere(image: str) -> None:
    program = (
        "import importlib.util, prunella, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n)], "
        "prunella.__version__)"
    )

    found = in_image(image, "python", "-c", program, *WITHOUT[image]).split()

    assert found == [image_name(image).rpartition(":")[2]]


@pytest.mark.parametrize("image", IMAGES)
def test_our_package_is_a_layer_of_its_own_among_its_dependencies(image: str) -> None:
    where = "import boto3, pathlib, prunella; print(*[pathlib.Path(m.__file__).parents[1] for m in (boto3, prunella)])"

    layers = docker.from_env().images.get(image_name(image)).attrs["RootFS"]["Layers"]
    of_boto3, of_ours = in_image(image, "python", "-c", where).split()
    command = in_image(image, "sh", "-c", "head -1 $(command -v prunella)")

    assert len(layers) >= 4, "the base, the user, the dependencies, our package"
    assert of_ours == of_boto3
    assert command.strip() == "#!/opt/prunella/bin/python"


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_compiled_in_an_image_is_not_compiled_again_at_every_start(image: str) -> None:
    compiled, *stale = in_image(image, "python", "-c", _COMPILED).split()

    assert int(compiled) > 1000
    assert stale == []


def test_airflow_finds_our_dags_in_its_image() -> None:
    listed = in_image("airflow", "sh", "-c", "ls $AIRFLOW__CORE__DAGS_FOLDER")

    assert {"pretrain_segment.py", "advance_experiments.py", "sweep_fleet.py"} <= set(listed.split())


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_a_bill_of_materials_with_what_is_in_it(image: str) -> None:
    folder = Path(__file__).resolve().parents[2]
    bill = json.loads((folder / "var" / "images" / f"{image}.cdx.json").read_text())

    listed = {_LOCAL_LABEL.sub(r"\1", part["purl"]) for part in bill["components"]}

    pins = (folder / "requirements" / f"{LOCKS[image]}.lock").read_text().splitlines()
    expected = {"pkg:pypi/" + pin.replace("==", "@") for pin in pins if not pin.startswith("#")}
    assert bill["bomFormat"] == "CycloneDX"
    assert expected <= listed
    assert any(name.startswith("pkg:deb/debian/libc6@") for name in listed)
