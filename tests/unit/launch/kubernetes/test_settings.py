"""Settings of a cluster can be meant as written, or are refused with the value that cannot."""

from pathlib import Path

import pytest

from prunella import __version__
from prunella.errors import ConfigError
from prunella.launch.kubernetes.render import manifest
from prunella.launch.kubernetes.settings import ClusterSettings, Resources, load_settings
from prunella.launch.kubernetes.trainjobs import SPANS_NODES
from prunella.records import Stage
from unit.launch.kubernetes.examples import launch


def test_a_settings_file_is_read_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('namespace = "lab"\n[resources.evaluation]\ncpu = "8"\nmemory = "64Gi"\nscratch = "50Gi"\n')

    settings = load_settings(str(path))

    evaluation = Resources(cpu="8", memory="64Gi", scratch="50Gi")
    assert settings == ClusterSettings(namespace="lab", resources={"evaluation": evaluation})
    assert settings.of(Stage.EVALUATION) == evaluation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("namespace = 'Not_A_Name'", "'Not_A_Name' cannot be a name"),
        ("user = 0", "would be root"),
        ("[resources.evaluate]\ncpu='1'\nmemory='1Gi'\nscratch='1Gi'", "did you mean 'evaluation'"),
        ("[resources.evaluation]\ncpu='much'\nmemory='1Gi'\nscratch='1Gi'", "expected a quantity such as 2, 500m or 4Gi"),
        ("[image_tags]\ntrainr = 'a'", "no image is called 'trainr'; did you mean 'trainer'"),
        ("[image_tags]\ntrainer = 'sha256:beef'", "'sha256:beef' cannot be a tag"),
        ("[image_tags]\ntrainer = ''", "'' cannot be a tag"),
        ("namespase = 'lab'", "did you mean 'namespace'"),
        ("namespace =", "no readable cluster settings"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=message):
        load_settings(str(path))


def test_missing_settings_are_refused_with_their_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: no readable cluster settings"):
        load_settings(str(tmp_path / "gone.toml"))


def test_preparing_data_needs_no_torch_and_every_other_stage_does() -> None:
    settings = ClusterSettings(image_prefix="lab/")

    kinds = {stage: settings.image(stage).partition(":")[0] for stage in Stage}

    assert kinds.pop(Stage.DATA_PREP) == "lab/prunella/worker"
    assert set(kinds.values()) == {"lab/prunella/trainer"}


def test_an_image_has_the_tag_or_the_digest_that_the_settings_name_and_otherwise_our_version(tmp_path: Path) -> None:
    digest = f"sha256:{'4' * 64}"
    path = tmp_path / "cluster.toml"
    path.write_text(f'image_prefix = "lab/"\n[image_tags]\ntrainer = "{digest}"\n')

    settings = load_settings(str(path))

    assert settings.image(Stage.TRAINING_SEGMENT) == f"lab/prunella/trainer@{digest}"
    assert settings.image(Stage.DATA_PREP) == f"lab/prunella/worker:{__version__}"
    assert ClusterSettings(image_tags={"worker": "build-7"}).image(Stage.DATA_PREP) == "prunella/worker:build-7"


@pytest.mark.parametrize("stage", Stage)
def test_every_manifest_has_the_image_that_the_settings_name(stage: Stage) -> None:
    settings = ClusterSettings(image_tags={"trainer": "build-7", "worker": "build-7"})

    spec = manifest(launch(stage), settings)["spec"]

    container = spec["trainer"] if stage in SPANS_NODES else spec["containers"][0]
    assert container["image"] == settings.image(stage)
    assert container["image"].endswith(":build-7")
