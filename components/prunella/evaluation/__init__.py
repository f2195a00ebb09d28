"""Evaluation: how good a verified checkpoint is.

Importing this package switches the Hugging Face libraries under lm-evaluation-harness to offline, because they read these
variables once, on their own import: an evaluation measures what is on disk and never waits for the network.
"""

import os

for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(_name, "1")
