"""In which form a pipeline is built: with components that carry their source, or with containers of a registry."""

from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

from prunella.orchestration.pipelines.components import CONTAINER_ANSWER, LIGHTWEIGHT_ANSWER, STEPS, component


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """`prefix` is the registry's name with its slash; empty means images of this machine."""

    is_container: bool = False
    prefix: str = ""

    def task(self, name: str, /, *, display: str | None = None, **arguments: Any) -> PipelineTask:
        """One task of a step: never cached, because the ledger and the nodes change under it; never retried.

        What may be tried again is decided by the policy, an attempt at a time.

        Args:
            display: what people see; the step's name otherwise.
        """
        task = component(name, is_container=self.is_container, prefix=self.prefix)(**arguments)
        task.set_display_name(display or name)
        task.set_cpu_limit(STEPS[name].cpu).set_memory_limit(STEPS[name].memory)
        return task.set_caching_options(False)

    def answer(self, task: PipelineTask) -> PipelineChannel:
        """What the step's function returned."""
        return task.outputs[CONTAINER_ANSWER if self.is_container else LIGHTWEIGHT_ANSWER]


#: Kubeflow's own id of a pipeline run: unique, and the same in all its tasks.
JOB_ID = dsl.PIPELINE_JOB_ID_PLACEHOLDER
