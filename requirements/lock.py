"""Resolve pyproject.toml's extras into the lock files beside this script (`make lock`).

A lock is `name==version` lines, sorted: no hashes and no addresses, because where packages come from is the business of
whoever installs (a CPU build of torch lies in another place than the CUDA one, under the same version). torch is pinned
here: an open range takes gigabytes of CUDA packages on a machine that has none. Nothing is installed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"

#: lock -> (extras of pyproject.toml, further arguments). Airflow's side is apart because of one conflict, see the extra
#: `cluster`. The worker has a part of the component's packages, in the same versions, because both read the same records.
LOCKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dev": ("orchestrator,worker,trainer,pipelines,dev", (TORCH,)),
    "orchestrator": ("orchestrator,cluster,prod", ()),
    "component": ("worker,trainer,pipelines", (TORCH,)),
    "worker": ("worker,pipelines", ("--constraint", str(REQUIREMENTS / "component.lock"))),
}


def resolve(extras: str, further: tuple[str, ...]) -> list[str]:
    """The pinned requirements that pip would install into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"]
    command += ["--dry-run", "--ignore-installed", "--report", "-", f"{REQUIREMENTS.parent}[{extras}]", *further]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = [item["metadata"] for item in report["install"]]
    return sorted(_pin(package["name"], package["version"]) for package in packages if package["name"] != "prunella")


def _pin(name: str, version: str) -> str:
    public = version.partition("+")[0]  # a local label such as +cpu names one build, not a release
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={public}"


def main() -> None:
    for lock, (extras, further) in LOCKS.items():
        pins = resolve(extras, further)
        header = f"# prunella[{extras}], resolved by `make lock`. Do not edit.\n"
        (REQUIREMENTS / f"{lock}.lock").write_text(header + "\n".join(pins) + "\n")
        print(f"requirements/{lock}.lock: {len(pins)} packages")


if __name__ == "__main__":
    main()
