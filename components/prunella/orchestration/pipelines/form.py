"""In which form a pipeline is built: with components that carry their source, or with containers of a registry."""

from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

from prunella.launch.images import TRAINER
from prunella.launch.kubernetes.placement import tolerated
from prunella.launch.kubernetes.settings import STORE_FOLDER, STORE_KEYS, STORE_SETTINGS
from prunella.orchestration.pipelines.components import CONTAINER_ANSWER, LIGHTWEIGHT_ANSWER, STEPS, component


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How components are built, and how their pods reach the store.

    Args:
        prefix: the registry's name with its slash; empty means images of this machine.
        device_resource: what an accelerator is called, such as nvidia.com/gpu.
        devices: how many of them each pod asks for that runs a stage with torch; 0 asks for none. Such a pod also
            goes onto nodes that are tainted by the accelerator's name.
        store_secret: secret with `STORE_KEYS`, config map of the same name with `STORE_SETTINGS` and, as files in
            `STORE_FOLDER`, whatever else it holds; each may be absent in the cluster. Empty names none.
    """

    is_container: bool = False
    prefix: str = ""
    store_secret: str = ""
    device_resource: str = "nvidia.com/gpu"
    devices: int = 0

    def task(self, name: str, /, *, display: str | None = None, **arguments: Any) -> PipelineTask:
        """One task of a step: never cached, because the ledger and the nodes change under it; never retried.

        What may be tried again is decided by the policy, an attempt at a time.

        Args:
            display: what people see; the step's name otherwise.
        """
        task = component(name, is_container=self.is_container, prefix=self.prefix)(**arguments)
        task.set_display_name(display or name)
        task.set_cpu_limit(STEPS[name].cpu).set_memory_limit(STEPS[name].memory)
        if self.devices and STEPS[name].image == TRAINER:
            task.set_accelerator_type(self.device_resource).set_accelerator_limit(self.devices)
            kubernetes.add_toleration(task, **tolerated(self.device_resource))
        if self.store_secret and "root" in arguments:
            self._reach_store(task)
        return task.set_caching_options(False)

    def _reach_store(self, task: PipelineTask) -> None:
        keys, settings = ({key: key for key in names} for names in (STORE_KEYS, STORE_SETTINGS))
        kubernetes.use_secret_as_env(task, self.store_secret, keys, optional=True)
        kubernetes.use_config_map_as_env(task, self.store_secret, settings, optional=True)
        kubernetes.use_config_map_as_volume(task, self.store_secret, STORE_FOLDER, optional=True)

    def answer(self, task: PipelineTask) -> PipelineChannel:
        """What the step's function returned."""
        return task.outputs[CONTAINER_ANSWER if self.is_container else LIGHTWEIGHT_ANSWER]


#: Kubeflow's own id of a pipeline run: unique, and the same in all its tasks.
JOB_ID = dsl.PIPELINE_JOB_ID_PLACEHOLDER
