"""What a cluster must be told once: names, images, resources, how the store is reached.

Decides nothing about an attempt. The defaults name what `containers/kubernetes` creates. Trusts whoever writes the settings
file, and checks only that it can be meant as written; it never holds a secret, only the name of one.
"""

import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prunella import __version__, codec
from prunella.errors import ConfigError
from prunella.launch.images import STAGE_IMAGES, image_name, image_of
from prunella.records import Stage

#: Names the settings file where no option does.
VARIABLE = "PRUNELLA_CLUSTER"
#: Keys of the secret and of the config map that tell a pod how to reach the bucket and how much of it to keep: names of
#: variables, there and here. Those of the config map may be absent, and so may the one that only temporary keys have.
STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
OPTIONAL_KEYS = ("AWS_SESSION_TOKEN",)
STORE_SETTINGS = ("AWS_REGION", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "PRUNELLA_S3_STYLE", "PRUNELLA_CACHE_BYTES")
#: Where pods see the whole config map as files, for values that are files: AWS_CA_BUNDLE names one.
STORE_FOLDER = "/store"
#: Kubernetes' form of a quantity, without exponents. Source: its reference of resource quantities, 2026-11.
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?")
#: Names of namespaces, accounts, secrets, claims and runtimes. Source: RFC 1123 labels.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
#: A tag, or a digest. Source: OCI distribution specification 1.1, 2026-11.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one pod of a stage asks for, and is held to.

    Attributes:
        cpu: cores, as Kubernetes writes them.
        memory: as Kubernetes writes it.
        scratch: room for heartbeats, logs and candidates on their way to the store, as Kubernetes writes it.
        devices: accelerators of a stage that belongs to no node; stages on nodes take what the fleet file says.
        shared_memory: room in /dev/shm, which counts as `memory` once it is written to, as Kubernetes writes it; empty for the
            engine's own size.
    """

    cpu: str
    memory: str
    scratch: str
    devices: int = 0
    shared_memory: str = ""

    def __post_init__(self) -> None:
        for value in (self.cpu, self.memory, self.scratch, self.shared_memory or "0"):
            if not _QUANTITY.fullmatch(value):
                raise ConfigError(f"resources: expected a quantity such as 2, 500m or 4Gi, found {value!r}")


#: Source: own choice 2026-11, those of the pipelines: ample for the tiny recipes, not measured on a cluster. Shared memory:
#: what NCCL's user guide gives a container (its page on troubleshooting, 2026-11); engines give 64 MiB.
_DEFAULT_RESOURCES: dict[Stage, Resources] = {
    Stage.DATA_PREP: Resources(cpu="2", memory="4Gi", scratch="10Gi"),
    Stage.GATE_NODE: Resources(cpu="1", memory="2Gi", scratch="1Gi"),
    Stage.GATE_FABRIC: Resources(cpu="2", memory="4Gi", scratch="1Gi", shared_memory="1Gi"),
    Stage.TRAINING_SEGMENT: Resources(cpu="4", memory="8Gi", scratch="20Gi", shared_memory="1Gi"),
    Stage.CHECKPOINT_VALIDATION: Resources(cpu="2", memory="8Gi", scratch="20Gi"),
    Stage.EVALUATION: Resources(cpu="2", memory="8Gi", scratch="20Gi"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSettings:
    """How stages run on a cluster.

    Attributes:
        image_prefix: registry of the images, with its slash; empty for images that the nodes have.
        image_tags: by image (`trainer`, `worker`) the tag that was pushed, or its digest (`sha256:` and so on); our version for
            one that is not named. A node that has a tag never asks for it again: one that is pushed twice is two programs.
        service_account: whom pods of stages run as; it may do nothing.
        runtime: name of the TrainingRuntime behind every TrainJob.
        store_secret: secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for temporary keys, AWS_SESSION_TOKEN; empty
            where the nodes may reach the bucket.
        store_config: config map with AWS_REGION, AWS_ENDPOINT_URL, AWS_CA_BUNDLE, PRUNELLA_S3_STYLE and PRUNELLA_CACHE_BYTES,
            each of which may be absent; pods see all of it as files in /store too.
        claim: volume claim that holds a root which is a folder; empty where the root is a bucket.
        claim_path: where that claim is mounted; the root lies in it.
        device_resource: what an accelerator is called, such as nvidia.com/gpu; empty where there is none.
        user: user and group id of every pod. Source: own choice 2026-11, above the ids that images use.
        grace_s: time between SIGTERM and SIGKILL. Source: own choice 2026-11: `training.grace_s` (25 s) for the ranks, and as
            much again to save and report.
        startup_s: what fetching an image and starting a container may take on top of a stage's own limit. Source: own choice
            2026-11, a 10 GB image at 20 MB/s; not measured.
        resources: by stage, where the defaults do not fit.
    """

    namespace: str = "prunella"
    image_prefix: str = ""
    image_tags: dict[str, str] = field(default_factory=dict)
    service_account: str = "prunella-stage"
    runtime: str = "prunella-torch"
    store_secret: str = "prunella-store"  # noqa: S105 - the name of a secret, not one
    store_config: str = "prunella-store"
    claim: str = ""
    claim_path: str = "/prunella"
    device_resource: str = ""
    user: int = 10001
    grace_s: int = 60
    startup_s: int = 600
    resources: dict[str, Resources] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.namespace, self.service_account, self.runtime, self.store_secret, self.store_config, self.claim):
            if name and not _NAME.fullmatch(name):
                raise ConfigError(
                    f"cluster settings: {name!r} cannot be a name in Kubernetes: expected letters, digits and '-'"
                )
        if self.user < 1:
            raise ConfigError(f"cluster settings: user {self.user} would be root; give a number above 0")
        _check_known("resources", "stage", self.resources, [stage.value for stage in Stage])
        _check_known("image_tags", "image", self.image_tags, list(STAGE_IMAGES))
        for tag in self.image_tags.values():
            if not _TAG.fullmatch(tag):
                raise ConfigError(
                    f"cluster settings: image_tags: {tag!r} cannot be a tag: expected letters, digits, '_', '.' and '-', or "
                    "'sha256:' and 64 hexadecimal digits; `podman images --digests` shows what was pushed"
                )

    def of(self, stage: Stage) -> Resources:
        """What a pod of this stage asks for."""
        return self.resources.get(stage.value, _DEFAULT_RESOURCES[stage])

    def image(self, stage: Stage) -> str:
        """The image of a stage: data preparation needs no torch."""
        image = image_of(stage)
        return image_name(image, self.image_prefix, self.image_tags.get(image, __version__))


def _check_known(table: str, kind: str, found: Iterable[str], known: list[str]) -> None:
    for name in found:
        if name not in known:
            raise ConfigError(f"cluster settings: {table}: no {kind} is called {name!r}{codec.suggest(name, known)}")


def load_settings(path: str | None = None) -> ClusterSettings:
    """The settings of a TOML file, else of the one that PRUNELLA_CLUSTER names, else the defaults.

    Raises:
        ConfigError: the file is missing, not TOML, or holds a key or value that cannot be meant.
    """
    path = path or os.environ.get(VARIABLE)
    if not path:
        return ClusterSettings()
    try:
        document = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: no readable cluster settings: {error}") from error
    return codec.decode(ClusterSettings, document, path)
