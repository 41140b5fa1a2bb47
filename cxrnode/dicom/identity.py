"""How the node names itself in the objects it makes (the loop guard knows its own results by it), and AE titles."""

from __future__ import annotations

MANUFACTURER = "cxrnode"
MODEL_NAME = "cxrnode chest radiograph analysis"
RESEARCH_USE = "Research use only. Not for diagnostic use."


def is_ae_title(text: str) -> bool:
    """1 to 16 printable ASCII characters, no backslash (PS3.5 table 6.2-1, VR AE)."""
    return 1 <= len(text) <= 16 and "\\" not in text and text.isascii() and text.isprintable()
