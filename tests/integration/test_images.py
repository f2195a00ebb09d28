"""What is in our images, and what must never be. Their contents are looked at inside the built images."""

import json
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from engine import engine_with, in_image
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
_SECRETS = ("PASSWORD", "SECRET", "TOKEN", "CREDENTIAL", "PRIVATE KEY")


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
    left = "/root /home /tmp /wheels /package /opt/package /opt/pip"
    assert in_image(image, "sh", "-c", f"ls -A {left} 2>/dev/null | grep -v : || true").split() == []


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

    listed = {part["purl"] for part in bill["components"]}

    pins = (folder / "requirements" / f"{LOCKS[image]}.lock").read_text().splitlines()
    expected = {"pkg:pypi/" + pin.replace("==", "@") for pin in pins if not pin.startswith(("#", "torch=="))}
    assert bill["bomFormat"] == "CycloneDX"
    assert expected <= listed
    assert any(name.startswith("pkg:deb/debian/libc6@") for name in listed)
