"""UIDs: validation before any UID becomes a path, and derivation, so that a repeat repeats the object (rule 3)."""

from __future__ import annotations

import re
import uuid

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_NAMESPACE = uuid.UUID("8612c3ea-904d-58bd-956e-2923a721757f")  # uuid5(DNS, "cxrnode.results")
IMPLEMENTATION_CLASS_UID = f"2.25.{uuid.uuid5(_NAMESPACE, 'implementation').int}"


def is_valid_uid(uid: object) -> bool:
    """True for a UID as PS3.5 section 9.1 has it: at most 64 characters, components of digits.

    Leading zeros, which the section forbids, are let pass: older devices write them, and to refuse their films, or to
    correct a UID that others know, would be worse.
    """
    text = str(uid)
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def derive_uid(*causes: str) -> str:
    """A UID under 2.25 (PS3.5 section B.2) that is a function of its causes alone."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(causes)).int}"
