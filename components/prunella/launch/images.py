"""Which image holds what a stage needs, and its full name."""

import os

from prunella import __version__
from prunella.records import Stage

#: With torch: what gates, trains, validates, evaluates.
TRAINER = "trainer"
#: Without torch: data prep and tracking.
WORKER = "worker"

PREFIX_VARIABLE = "PRUNELLA_IMAGE_PREFIX"


def image_of(stage: Stage) -> str:
    """The image that a stage runs in."""
    return WORKER if stage is Stage.DATA_PREP else TRAINER


def image_name(image: str, prefix: str | None = None) -> str:
    """An image's full name.

    Args:
        prefix: the registry's name with its slash; empty for images of this machine. PRUNELLA_IMAGE_PREFIX by default.
    """
    chosen = os.environ.get(PREFIX_VARIABLE, "") if prefix is None else prefix
    return f"{chosen}prunella/{image}:{__version__}"
