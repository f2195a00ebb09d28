"""From the key of a request to the manifest that answers it. Reads the ledger, writes nothing, talks to no cluster."""

from prunella.errors import ConfigError
from prunella.launch.kubernetes.naming import ClusterLaunch
from prunella.launch.kubernetes.pods import Manifest, pod
from prunella.launch.kubernetes.settings import ClusterSettings
from prunella.launch.kubernetes.trainjobs import SPANS_NODES, train_job
from prunella.launch.shell import load_request, time_limit_s
from prunella.records import Stage


def read_launch(stage: Stage, *, root: str, key: str, excluded: tuple[str, ...] = ()) -> ClusterLaunch:
    """The next start of the stage for the request at `key`: starts that vanished are on record, so nobody has to count them.

    Raises:
        ConfigError: there is no such request, the experiment was extended since it was written, or it asks for training that
            vanished: an attempt never trains twice.
    """
    ledger, request, config = load_request(stage, root, key)
    start = len(ledger.vanishings(request.output))
    if start and stage is Stage.TRAINING_SEGMENT:
        raise ConfigError(f"--request {key}: this training vanished, and an attempt never trains twice; open a new attempt")
    limit_s = time_limit_s(stage, config)
    return ClusterLaunch(request_key=key, request=request, start=start, excluded=excluded, timeout_s=limit_s)


def manifest(launch: ClusterLaunch, settings: ClusterSettings) -> Manifest:
    """A pod, or a TrainJob for a stage that spans nodes."""
    render = train_job if launch.request.stage in SPANS_NODES else pod
    return render(launch, settings)
