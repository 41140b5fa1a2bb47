"""No library tells its maker anything (design rule 14): set before any of them is imported, for this process and those
that it starts. `engines/__init__.py` imports this; whoever imports such a library imports `engines` first.

onnxruntime >= 1.29 sends device and model data to Microsoft by default, openvino asks Google Analytics, the hub of timm
counts its users.
"""

from __future__ import annotations

import os
import sys

_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
os.environ.update(_ENVIRONMENT)
# openvino goes on without it; with it, importing openvino writes into HOME, and fails where there is none
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
