"""How one start of a stage is called on a cluster, and how people find it.

The name is the handle: whoever asks twice for the same start finds the pod of the first. So it is a pure function of what is
asked, of the attempt's opening and of the number of the start, and nothing else. Airflow's try is not in it, because a second
try must find the pod of the first. The number of the start is, because a stage that vanished is started again and must never
be taken for its finished predecessor.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from prunella import __version__
from prunella.errors import ConfigError
from prunella.records import Request, Stage

#: Longest name. Source: JobSet 0.10 adds `-node-0-`, an index and 6 more characters for a pod's name, which holds 63.
_LONGEST = 45
_SHORT = {
    Stage.DATA_PREP: "data",
    Stage.GATE_NODE: "gate",
    Stage.GATE_FABRIC: "fabric",
    Stage.TRAINING_SEGMENT: "train",
    Stage.CHECKPOINT_VALIDATION: "validate",
    Stage.EVALUATION: "evaluate",
}
#: Label that holds the name of the start on each of its pods.
LAUNCH_LABEL = "prunella.launch"
#: Annotations that say in full what a pod or TrainJob answers, where its name only has a digest.
IDENTITY = ("prunella.root", "prunella.request")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterLaunch:
    """One start of a stage on a cluster.

    Attributes:
        request_key: where the request lies, under `request.root`.
        start: how often this stage was started before for the same request, from 0.
        excluded: nodes that the pods stay off.
        timeout_s: how long the stage itself may take; None for no limit.
    """

    request_key: str
    request: Request
    start: int = 0
    excluded: tuple[str, ...] = ()
    timeout_s: float | None = None

    @property
    def name(self) -> str:
        """Name of the pod or TrainJob: a DNS label that starts with a letter, the same for the same start, for no other."""
        request = self.request
        tail = f"-{_SHORT[request.stage]}-s{request.segment:04d}-a{request.attempt:02d}-t{self.start}-{self._mark()}"
        experiment = (request.experiment or "fleet")[: _LONGEST - len("p-") - len(tail)]
        return f"p-{experiment.rstrip('-')}{tail}"

    def _mark(self) -> str:
        """What the readable part leaves out: the root, the key, and in which life of the root the attempt was opened."""
        request = self.request
        identity = (request.root, self.request_key, request.run_index, request.opened_ns, self.start)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:10]

    @property
    def command(self) -> list[str]:
        """What a pod runs."""
        stage = ["python", "-m", "prunella", "stage", self.request.stage.value]
        return [*stage, "--root", self.request.root, "--request", self.request_key]

    @property
    def labels(self) -> dict[str, str]:
        """Labels of everything that is made for this start."""
        request = self.request
        return {
            "app.kubernetes.io/name": "prunella",
            "app.kubernetes.io/component": request.stage.value,
            "app.kubernetes.io/managed-by": "prunella",
            "app.kubernetes.io/version": __version__,
            # A label may not end in '-', an experiment may. Nothing but people's queries depends on it.
            "prunella.experiment": request.experiment.rstrip("-"),
            "prunella.segment": str(request.segment),
            "prunella.attempt": str(request.attempt),
            "prunella.stage": request.stage.value,
            "prunella.start": str(self.start),
            LAUNCH_LABEL: self.name,
        }


def check_identity(name: str, wanted: Mapping[str, str], found: Mapping[str, str] | None) -> None:
    """Return quietly when what was found under a name answers what was asked, by the annotations of both.

    Raises:
        ConfigError: it is somebody else's.
    """
    for key in IDENTITY:
        if wanted[key] != (has := (found or {}).get(key)):
            raise ConfigError(
                f"{name}: expected one that answers {key} {wanted[key]!r}, found {has!r}; somebody else made it: delete it, "
                "or use a namespace of your own"
            )
