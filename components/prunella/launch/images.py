"""Which image holds what a stage needs, and its full name."""

import os

from prunella import __version__
from prunella.records import Stage

#: With torch: what gates, trains, validates, evaluates.
TRAINER = "trainer"
#: Without torch: data prep and tracking.
WORKER = "worker"
STAGE_IMAGES = (TRAINER, WORKER)

PREFIX_VARIABLE = "PRUNELLA_IMAGE_PREFIX"
#: How a digest begins, in place of a tag.
DIGEST = "sha256:"


def image_of(stage: Stage) -> str:
    """The image that a stage runs in."""
    return WORKER if stage is Stage.DATA_PREP else TRAINER


def image_name(image: str, prefix: str | None = None, tag: str = __version__) -> str:
    """An image's full name.

    Args:
        prefix: the registry's name with its slash; empty for images of this machine. PRUNELLA_IMAGE_PREFIX by default.
        tag: or a digest, `sha256:` and so on, which names one build for ever.
    """
    chosen = os.environ.get(PREFIX_VARIABLE, "") if prefix is None else prefix
    mark = "@" if tag.startswith(DIGEST) else ":"
    return f"{chosen}prunella/{image}{mark}{tag}"
