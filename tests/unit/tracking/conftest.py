"""Makes the campaign builder importable under pytest's importlib mode."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).parent / "campaign.py"

if "campaign" not in sys.modules:
    _SPEC = importlib.util.spec_from_file_location("campaign", _PATH)
    assert _SPEC is not None
    assert _SPEC.loader is not None
    _MODULE = importlib.util.module_from_spec(_SPEC)
    sys.modules["campaign"] = _MODULE
    _SPEC.loader.exec_module(_MODULE)
