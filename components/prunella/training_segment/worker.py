"""Entry point of one rank, started by torchrun: `python -m prunella.training_segment.worker --scratch DIR`.

It binds its life to its agent's and gives a first heartbeat before anything slow is imported, then trains, and leaves an exit
note whatever happens. Nothing else may run in this process.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from prunella import logs
from prunella.node_processes import die_with_parent
from prunella.startup import heavy_imports
from prunella.training_segment.exits import Ending, write_note
from prunella.training_segment.heartbeat import Phase, Pulse
from prunella.training_segment.job import Job, read_job

logger = logging.getLogger("prunella.training_segment.worker")  # its own name is `__main__`, which nobody formats

_INIT_PID = 1


def main() -> int:
    """Train as the rank that torchrun's environment names; 0 when training ended, 1 when it failed."""
    die_with_parent()
    if os.getppid() == _INIT_PID:  # the agent went before the kernel was asked
        return 1
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", type=Path, required=True)
    scratch: Path = parser.parse_args().scratch
    rank, node = int(os.environ["RANK"]), os.environ["PRUNELLA_NODE"]
    pulse = Pulse(scratch, rank=rank, node=node)
    pulse.beat(Phase.INITIALISE, step=0)
    job = read_job(scratch)
    logs.configure(bound=_bound(job, node, rank))
    return _train(job, scratch, pulse, rank, node)


def _bound(job: Job, node: str, rank: int) -> dict[str, object]:
    """Who speaks, for every line of this process's log."""
    request = job.request
    return {
        "experiment": request.experiment,
        "segment": request.segment,
        "attempt": request.attempt,
        "stage": request.stage.value,
        "node": node,
        "rank": rank,
    }


def _train(job: Job, scratch: Path, pulse: Pulse, rank: int, node: str) -> int:
    ending = Ending(last_step=job.request.first_step - 1)
    try:
        with heavy_imports():  # torch, which takes seconds
            from prunella.training_segment.rank import train

        train(job, scratch, pulse, ending, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    except BaseException as error:  # a rank's own failure becomes its note, here and nowhere else
        logger.error("rank_failed step=%s phase=%s error=%s", pulse.step, pulse.phase, error, exc_info=True)
        write_note(scratch, pulse, ending, rank=rank, node=node, error=error)
        return 1
    write_note(scratch, pulse, ending, rank=rank, node=node, error=None)
    return 0


if __name__ == "__main__":
    # Threads of a broken process group may never end; everything that matters is written.
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
