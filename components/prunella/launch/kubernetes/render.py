"""From the key of a request to the manifest that answers it. Reads the ledger, writes nothing, talks to no cluster."""

from prunella.launch.kubernetes.naming import ClusterLaunch
from prunella.launch.kubernetes.pods import Manifest, pod
from prunella.launch.kubernetes.settings import ClusterSettings
from prunella.launch.kubernetes.trainjobs import SPANS_NODES, train_job
from prunella.launch.shell import load_request
from prunella.records import Stage


def read_launch(stage: Stage, *, root: str, key: str, start: int = 0, excluded: tuple[str, ...] = ()) -> ClusterLaunch:
    """One start of the stage for the request at `key`. A node's gate has the limit that the configuration gives it.

    Raises:
        ConfigError: there is no such request, or the experiment was extended since it was written.
    """
    _, request, config = load_request(stage, root, key)
    timeout_s = config.gate.node_timeout_s if stage is Stage.GATE_NODE else None
    return ClusterLaunch(request_key=key, request=request, start=start, excluded=excluded, timeout_s=timeout_s)


def manifest(launch: ClusterLaunch, settings: ClusterSettings) -> Manifest:
    """A pod, or a TrainJob for a stage that spans nodes."""
    render = train_job if launch.request.stage in SPANS_NODES else pod
    return render(launch, settings)
