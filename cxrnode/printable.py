"""Text from outside as it may stand in a line of a terminal, a log or a table: it is seen, and does nothing.

File names, AE titles, values of a configuration and what libraries quote of them may hold what moves the cursor, sets
the terminal's title, begins a line of its own or turns the order of the letters round. Whatever prints is an outlet:
`cli.output`, `logs`, `spreadsheet`. Each calls `printable` or `json_text`; what was escaped before remains as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

# C0, DEL and C1; soft hyphen; marks, embeddings, overrides and isolates of bidirectional text; what has no width; line
# and paragraph separators; tags; halves of characters (bytes of a file name that are no UTF-8). As a class of `re`.
ACTING = (
    r"\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    r"\uffa0\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff"
)
_EMOJI = r"\u2190-\u2bff\U0001f000-\U0001faff"
# The joiner that makes one picture of several (U+200D between them) is a part of it
_ACTS = re.compile(rf"(?<=[{_EMOJI}\ufe0f])\u200d(?=[{_EMOJI}])|([{ACTING}])")
_BEYOND_ASCII = re.compile(r"[\x7f-\U0010ffff]")


def printable(text: str) -> str:
    r"""`text` with escapes for what acts: \x1b (ESC), \x0a (newline), \u202e, \xe9 (a byte that is no UTF-8)."""
    return (
        text if text.isascii() and text.isprintable() else _ACTS.sub(lambda m: _escaped(m[1]) if m[1] else m[0], text)
    )


def json_text(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """JSON in printable ASCII (and the newlines of `indent`): exact, but for halves of characters, which JSON lacks.

    Those are as in `printable`: not every reader takes them.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=default)
    return _BEYOND_ASCII.sub(lambda m: _in_json(m[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # as os.fsdecode has a byte
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _in_json(character: str) -> str:
    if character == "\x7f":
        return "\\u007f"
    return f"\\{_escaped(character)}" if "\ud800" <= character <= "\udfff" else json.dumps(character)[1:-1]
