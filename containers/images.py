"""Build the images of this folder (`make images`), one a folder, with whatever builds images on this machine.

The wheels come first, made from the locks by this Python's pip with its own settings, so that a build fetches nothing: it
needs no network, no index settings and no certificates inside. Those of the lock and our own become two layers: after a change
of our code only the small one is made anew, pushed and pulled. The base is the official Python image, or one made here out of
Debian packages (`--base bootstrap`), which is what a machine without a Docker engine gets. Beside each image lies a bill of
materials (CycloneDX) of what is really in it. Ends with what each weighs.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

REPOSITORY = Path(__file__).resolve().parents[1]
#: Wheels, build contexts and logs. Disposable; kept because it makes the next build quick.
WORK = REPOSITORY / "var" / "images"
#: image -> the lock it is made from.
LOCKS = {"trainer": "component", "worker": "worker", "airflow": "orchestrator"}
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OFFICIAL_BASE = f"python:{PYTHON}-slim-bookworm"
BOOTSTRAP = "bootstrap"
_BOOTSTRAP_TAG = "localhost/prunella/base:bookworm"
_BOOTSTRAP_PACKAGES = "python3,python3-venv,ca-certificates"
#: The only Python that bookworm has. Source: packages.debian.org/bookworm/python3, 2026-11.
_BOOTSTRAP_PYTHON = "3.11"
#: How each builder is called. chroot isolation asks nothing of the kernel, and OCI's own format has no health check. Without
#: layers podman would find nothing of an earlier build again, and make one layer of all that an image adds to its base.
_BUILDERS = {
    "docker": ("docker", "build", "--network=none"),
    "podman": ("podman", "build", "--isolation=chroot", "--format=docker", "--layers=true"),
}
#: podman's own limits are refused on some machines (see `launch/container.py`), and it wants systemd for health checks.
_LIMITS = {"docker": (), "podman": ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--no-healthcheck")}
#: Starts a container that looks at an image. Docker that maps users (userns-remap) wants both or none.
_RUN = ("run", "--rm", "--network=host", "--userns=host")
_TAIL_LINES = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"which; {', '.join(LOCKS)} by default")
    parser.add_argument("--builder", choices=_BUILDERS, help="docker where an engine answers, else podman")
    parser.add_argument("--base", help=f"base image; {OFFICIAL_BASE} with docker, else {BOOTSTRAP!r}")
    parser.add_argument("--prefix", default=os.environ.get("PRUNELLA_IMAGE_PREFIX", ""), help="registry, with its slash")
    parser.add_argument("--torch-index", help="package index of a CUDA build of torch, for the trainer; the CPU build else")
    given = parser.parse_args()
    builder = given.builder or _builder()
    base = given.base or (OFFICIAL_BASE if builder == "docker" else BOOTSTRAP)
    _check_python(base, _python_of(base, builder))
    if base == BOOTSTRAP:
        base = _bootstrap(builder)
    for image in given.images or LOCKS:
        _build(image, builder, base, given.prefix, given.torch_index)
        _write_bill(image, builder, _tag(image, given.prefix))
    _print_sizes(builder, [_tag(image, given.prefix) for image in given.images or LOCKS])


def _builder() -> str:
    """The first builder that can build here."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        return "docker"
    if not shutil.which("podman"):
        sys.exit("make images: no Docker engine answers, and podman is not there; on Debian run: make system")
    return "podman"


# ------------------------------------------------------------------------------------------------ the base


def _python_of(base: str, builder: str) -> str:
    """The version of a base's Python, such as 3.11. An image that somebody named is asked."""
    known = {BOOTSTRAP: _BOOTSTRAP_PYTHON, OFFICIAL_BASE: PYTHON}
    if base in known:
        return known[base]
    question = "import sys; print(*sys.version_info[:2], sep='.')"
    asked = [builder, *_RUN, *_LIMITS[builder], base, "python3", "-c", question]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"{builder} ended with {done.returncode}"])[-1]
        sys.exit(f"make images: --base {base}: expected an image in which python3 answers, found: {reason}; name another")
    return done.stdout.strip()


def _check_python(base: str, found: str) -> None:
    """Ends where the base has another Python than makes the wheels: pip would refuse them inside, once all were made."""
    if found != PYTHON:
        sys.exit(
            f"make images: expected a base with Python {PYTHON}, for which wheels are made here, found Python {found} in "
            f"{base!r}; name an image that has {PYTHON} with --base, or make the wheels with the other: "
            f"rm -r .venv && make images PYTHON=python{found}"
        )


def _bootstrap(builder: str) -> str:
    """A minimal Debian with Python, made of Debian packages instead of a registry's image. Made once."""
    if subprocess.run([builder, "image", "inspect", _BOOTSTRAP_TAG], capture_output=True).returncode == 0:
        return _BOOTSTRAP_TAG
    if not shutil.which("mmdebstrap"):
        sys.exit(f"make images: --base {BOOTSTRAP} needs mmdebstrap; on Debian run: make system")
    context = WORK / "base"
    context.mkdir(parents=True, exist_ok=True)
    archive = context / "root.tar"
    print("base: a minimal Debian with Python, from Debian packages", flush=True)
    _logged(["mmdebstrap", "--variant=minbase", f"--include={_BOOTSTRAP_PACKAGES}", "bookworm", str(archive)], "base")
    (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
    _logged([*_BUILDERS[builder], f"--tag={_BOOTSTRAP_TAG}", str(context)], "base")
    archive.unlink()
    return _BOOTSTRAP_TAG


# ------------------------------------------------------------------------------------------------ an image


def _build(image: str, builder: str, base: str, prefix: str, torch_index: str | None) -> None:
    is_cuda = torch_index is not None and image == "trainer"
    context = WORK / (f"{image}-cuda" if is_cuda else image)  # so that no build finds the other's torch
    context.mkdir(parents=True, exist_ok=True)
    print(f"{image}: wheels of requirements/{LOCKS[image]}.lock", flush=True)
    _make_wheels(image, context / "wheels", torch_index if is_cuda else None)
    _make_own_wheel(image, context / "package")
    for file in (f"{image}/Dockerfile", "install.sh"):
        shutil.copy(REPOSITORY / "containers" / file, context)
    arguments = {"BASE": base, "VERSION": _version(), "REVISION": _revision(), "ACCELERATOR": "cuda" if is_cuda else "cpu"}
    if image != "trainer":
        del arguments["ACCELERATOR"]
    print(f"{image}: image, with {builder} on {base}", flush=True)
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    _logged([*_BUILDERS[builder], *options, f"--tag={_tag(image, prefix)}", str(context)], image)


def _make_wheels(image: str, folder: Path, torch_index: str | None) -> None:
    """Every package of the lock as a wheel. What is there already is not made again."""
    file = REPOSITORY / "requirements" / f"{LOCKS[image]}.lock"
    lock = [line for line in file.read_text().splitlines() if "==" in line]
    kept = {path for pin in lock if (path := _wheel_of(pin, folder)) is not None and torch_index is None}
    for path in set(folder.glob("*.whl")) - kept:
        path.unlink()
    torch = [pin for pin in lock if pin.startswith("torch==")] if torch_index is not None else []
    if missing := [pin for pin in lock if pin not in torch and _wheel_of(pin, folder) is None]:
        _wheel(image, folder, "--no-deps", *missing)
    if torch_index is not None:
        # A CUDA build brings packages of its own, which no lock of ours knows. Those that the lock does know lie in the folder
        # by now, and pip is held to these versions: where torch wants another, it ends here and not in an image.
        _wheel(image, folder, "--index-url", torch_index, "--find-links", str(folder), "--constraint", str(file), *torch)
    _refuse_twins(folder)


def _make_own_wheel(image: str, folder: Path) -> None:
    """This package as the only wheel of its folder."""
    for path in folder.glob("*.whl"):
        path.unlink()
    _wheel(image, folder, "--no-deps", "--no-build-isolation", str(REPOSITORY))


def _wheel(image: str, folder: Path, *arguments: str) -> None:
    options = ("--disable-pip-version-check", "--no-input", "--progress-bar=off", "--wheel-dir", str(folder))
    _logged([sys.executable, "-m", "pip", "wheel", *options, *arguments], image)


def _refuse_twins(folder: Path) -> None:
    """Ends where a package came in two versions, or for two platforms: an image would get either."""
    names = [re.sub(r"[-_.]+", "-", path.name.partition("-")[0]).lower() for path in folder.glob("*.whl")]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        sys.exit(f"make images: expected one wheel a package, found more of {', '.join(twins)}; remove {folder}, and try again")


def _wheel_of(pin: str, folder: Path) -> Path | None:
    name, _, version = pin.partition("==")
    pattern = re.compile(rf"{name.replace('-', '[-_.]')}-{re.escape(version)}(\+[^-]*)?-.*\.whl", re.IGNORECASE)
    return next((path for path in sorted(folder.glob("*.whl")) if pattern.fullmatch(path.name)), None)


# ------------------------------------------------------------------------------------------------ its bill of materials

#: Run inside the image: what Python and what Debian say is installed there.
_INVENTORY = """
import importlib.metadata as m, json, subprocess
debian = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\\n"], capture_output=True, text=True).stdout
print(json.dumps({
    "pypi": sorted({(d.metadata["Name"], d.version) for d in m.distributions()}),
    "deb": [line.split() for line in debian.splitlines()],
}))
"""


def _write_bill(image: str, builder: str, tag: str) -> None:
    """What is installed in an image, asked of the image itself, as `var/images/<image>.cdx.json`."""
    inside = [builder, *_RUN, "--pull=never", *_LIMITS[builder], tag, "python", "-c", _INVENTORY]
    found = json.loads(subprocess.run(inside, check=True, capture_output=True, text=True).stdout)
    purls = [PackageURL("pypi", name=re.sub(r"[-_.]+", "-", name).lower(), version=version) for name, version in found["pypi"]]
    purls += [PackageURL("deb", "debian", name, version) for name, version in found["deb"]]
    bill = Bom(components=[_component(purl) for purl in purls])
    bill.metadata.component = Component(name=f"prunella/{image}", version=_version(), type=ComponentType.CONTAINER)
    bill.register_dependency(bill.metadata.component, bill.components)
    (WORK / f"{image}.cdx.json").write_text(JsonV1Dot6(bill).output_as_string(indent=2))


def _component(purl: PackageURL) -> Component:
    return Component(name=purl.name, version=purl.version, purl=purl, bom_ref=str(purl), type=ComponentType.LIBRARY)


def _tag(image: str, prefix: str) -> str:
    return f"{prefix}prunella/{image}:{_version()}"


def _version() -> str:
    version: str = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    return version


def _revision() -> str:
    found = subprocess.run(["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _print_sizes(builder: str, tags: list[str]) -> None:
    for tag in tags:
        size = subprocess.run([builder, "images", "--format={{.Size}}", tag], check=True, capture_output=True, text=True)
        print(f"{tag}  {size.stdout.splitlines()[0]}")


def _logged(command: list[str], name: str) -> None:
    """Run a command with its output in `var/images/<name>.log`; ends this one with its last lines when it fails."""
    log = WORK / f"{name}.log"
    # Docker's own builder puts an image into the engine; another (buildx) would keep it to itself.
    environment = {variable: value for variable, value in os.environ.items() if variable != "BUILDX_BUILDER"}
    with log.open("ab") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        sys.exit(f"{tail}\nmake images: {command[0]} ended with {done.returncode} while making {name}; all it said is in {log}")


if __name__ == "__main__":
    main()
