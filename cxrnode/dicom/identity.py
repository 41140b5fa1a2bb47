"""How the node names itself in the objects it makes; the loop guard knows its own results by it."""

from __future__ import annotations

MANUFACTURER = "cxrnode"
MODEL_NAME = "cxrnode chest radiograph analysis"
RESEARCH_USE = "Research use only. Not for diagnostic use."
