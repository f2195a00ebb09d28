"""What goes into an image: every package of the lock in its version, what a CUDA build of torch brings besides, nothing twice;
and in which order, so that a change of our code leaves the layers of its dependencies as they are.

Packages are empty wheels in a folder, and pip is the real one: it resolves between them as it would between those of an index.
"""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "containers" / "images.py"
LOCK = "# resolved\nfilelock==1.0\ntorch==2.13.0\n"
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "prunella"
version = "0.1.0"
[tool.hatch.build.targets.wheel]
bypass-selection = true
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for version in ("1.0", "2.0"):
        publish(folder, "filelock", version)
    publish(folder, "nvidia_cublas", "12.8")
    return folder


def publish(folder: Path, name: str, version: str, *requires: str) -> None:
    """An empty wheel."""
    about = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, for a project with a lock of two packages."""
    spec = importlib.util.spec_from_file_location("containers_images", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.setattr(module, "WORK", tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "component.lock").write_text(LOCK)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return module


def wheels_in(folder: Path) -> set[str]:
    return {"-".join(path.name.split("-")[:2]) for path in folder.glob("*.whl")}


def test_a_cuda_build_has_the_versions_of_the_lock_and_what_torch_brings_besides(
    images: ModuleType, index: Path, tmp_path: Path
) -> None:
    publish(index, "torch", "2.13.0+cu130", "filelock", "nvidia-cublas==12.8")

    images._make_wheels("trainer", tmp_path / "wheels", "https://torch.example/cu130")

    found = wheels_in(tmp_path / "wheels")
    assert found == {"filelock-1.0", "torch-2.13.0+cu130", "nvidia_cublas-12.8"}


def test_a_torch_that_wants_another_version_than_the_lock_ends_the_build(
    images: ModuleType, index: Path, tmp_path: Path
) -> None:
    publish(index, "torch", "2.13.0+cu130", "filelock>=2")

    with pytest.raises(SystemExit, match="filelock"):
        images._make_wheels("trainer", tmp_path / "wheels", "https://torch.example/cu130")


def test_two_wheels_of_one_package_end_the_build(images: ModuleType, tmp_path: Path) -> None:
    publish(tmp_path, "nvidia_cublas", "12.8")
    publish(tmp_path, "NVIDIA.cublas", "12.9")

    with pytest.raises(SystemExit, match=r"more of nvidia-cublas; remove .*, and try again"):
        images._refuse_twins(tmp_path)


# ------------------------------------------------------------------------------------------------ the base and its Python

#: A builder whose every image has this Python, and which notes what it is told.
BUILDER = """\
#!/bin/sh
echo "$1" >> "$(dirname "$0")/told"
[ "$1" = run ] || exit 1
echo {python}
"""


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program podman of this machine."""
    program = tmp_path / "bin" / "podman"
    program.parent.mkdir()
    program.write_text(BUILDER.format(python="3.10"))
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


@pytest.mark.parametrize(("base", "python"), [("bootstrap", "3.11"), ("registry.example/python:3.10-slim", "3.10")])
def test_a_base_with_another_python_is_refused_before_anything_is_built(
    base: str, python: str, images: ModuleType, builder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PYTHON", "3.12")
    monkeypatch.setattr(sys, "argv", ["images.py", "--builder", "podman", "--base", base])
    before = set(tmp_path.iterdir())

    with pytest.raises(SystemExit) as refused:
        images.main()

    message = str(refused.value)
    assert f"expected a base with Python 3.12, for which wheels are made here, found Python {python} in {base!r}" in message
    assert message.endswith(f"with --base, or make the wheels with the other: rm -r .venv && make images PYTHON=python{python}")
    assert set(tmp_path.iterdir()) == before
    told = builder.with_name("told")
    assert base == "bootstrap" or told.read_text().split() == ["run"]


def test_an_image_without_python_is_no_base(images: ModuleType, builder: Path) -> None:
    builder.write_text("#!/bin/sh\necho 'exec: python3: not found' >&2\nexit 127\n")

    with pytest.raises(SystemExit, match=r"--base debian: expected .* python3 answers, found: exec: python3: not found; name"):
        images._python_of("debian", "podman")


def test_a_base_with_the_python_that_makes_the_wheels_is_taken(images: ModuleType, builder: Path) -> None:
    builder.write_text(BUILDER.format(python=images.PYTHON))

    for base in ("registry.example/ours", images.OFFICIAL_BASE):
        images._check_python(base, images._python_of(base, "podman"))


def test_a_base_is_looked_at_with_the_users_of_this_machine_because_the_network_is_its_own_too(
    images: ModuleType, builder: Path
) -> None:
    builder.write_text('#!/bin/sh\necho "$*"\n')

    asked = images._python_of("debian", "podman").split()

    assert {"--network=host", "--userns=host"} <= set(asked)


# ------------------------------------------------------------------------------------------------ an image, in the engine


def test_an_image_is_looked_at_as_it_was_built_and_never_fetched(images: ModuleType, builder: Path, tmp_path: Path) -> None:
    """Docker Hub's `prunella` is not us."""
    builder.write_text("""#!/bin/sh
echo "$*" > "$(dirname "$0")/told"
echo '{"pypi": [["filelock", "1.0"]], "deb": []}'
""")

    images._write_bill("trainer", "podman", "prunella/trainer:0.1.0")

    told = builder.with_name("told").read_text().split()
    assert {"--pull=never", "--network=host", "--userns=host"} <= set(told[: told.index("prunella/trainer:0.1.0")])
    assert "filelock" in (tmp_path / "trainer.cdx.json").read_text()


def test_an_image_is_built_by_the_engine_that_is_to_have_it(
    images: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDX_BUILDER", "elsewhere")

    images._logged(["sh", "-c", "echo built by ${BUILDX_BUILDER:-the engine}"], "trainer")

    assert (tmp_path / "trainer.log").read_text() == "built by the engine\n"


# ------------------------------------------------------------------------------------------------ our package, and its layer


def test_our_wheel_lies_apart_from_its_dependencies_and_alone(images: ModuleType, index: Path, tmp_path: Path) -> None:
    publish(index, "torch", "2.13.0")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "package").mkdir()
    publish(tmp_path / "wheels", "prunella", "0.0.9")
    publish(tmp_path / "package", "prunella", "0.0.9")

    images._make_wheels("trainer", tmp_path / "wheels", None)
    images._make_own_wheel("trainer", tmp_path / "package")

    assert wheels_in(tmp_path / "wheels") == {"filelock-1.0", "torch-2.13.0"}
    assert wheels_in(tmp_path / "package") == {"prunella-0.1.0"}


def instructions(image: str) -> list[str]:
    """Of a Dockerfile, each on one line, without comments."""
    lines = [line for line in (SCRIPT.parent / image / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", "").splitlines() if line]


@pytest.mark.parametrize("image", ["trainer", "worker", "airflow"])
def test_a_change_of_our_code_leaves_every_layer_but_its_own_and_a_commit_leaves_all(image: str) -> None:
    lines = instructions(image)
    start = max(number for number, line in enumerate(lines) if line.startswith("FROM "))

    build, final = lines[:start], lines[start + 1 :]

    dependencies, own = build.index("COPY wheels /wheels"), build.index("COPY package /package")
    assert [line for line in build[dependencies:own] if "/package" in line] == []
    assert [line for line in build[own:] if "/wheels" in line] == []
    assert [line.split()[0] for line in final if line.split()[0] in ("RUN", "COPY")] == ["RUN", "COPY", "COPY"]
    assert [line.split(" ", 1)[1] for line in final if line.startswith("COPY ")] == [
        "--from=build /opt/prunella /opt/prunella",
        "--from=build /opt/package /opt/prunella",
    ]
    said = [number for number, line in enumerate(final) if line.split()[0] in ("ARG", "LABEL")]
    assert said == list(range(said[0], len(final))), "what names the commit stands last"


@pytest.mark.parametrize(
    ("accelerator", "built_for", "is_true"),
    [("cpu", None, True), ("cuda", "13.0", True), ("cuda", None, False), ("cpu", "13.0", False), ("tpu", None, False)],
)
def test_an_image_that_would_say_another_accelerator_than_its_torch_is_not_built(
    accelerator: str, built_for: str | None, is_true: bool, tmp_path: Path
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(f"cuda = {built_for!r}\n")
    [step] = [line for line in instructions("trainer") if line.startswith("RUN ") and "ACCELERATOR" in line]
    command = step.removeprefix("RUN ").replace("/opt/prunella/bin/python", sys.executable)

    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"ACCELERATOR": accelerator, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode == 0) is is_true, done.stderr
    assert is_true or f"found {accelerator} and torch for {f'CUDA {built_for}' if built_for else 'the CPU'}" in done.stderr
