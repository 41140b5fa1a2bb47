"""An item: one file or member, as the walk of an archive finds it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cxrnode.location import Location
from cxrnode.printable import ACTING, printable
from cxrnode.types import Reason, Rejection

_LIKE_ESCAPES = re.compile(rf"\\+(?=x[0-9a-f]{{2}}|u[0-9a-f]{{4}}|U[0-9a-f]{{8}}|[{ACTING}])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file, wherever it lies. `path` is what the user reads, and the item's key; `at` says how to read it again."""

    path: str
    at: Location
    rejection: Rejection | None = None  # known before reading: unreadable folder, listed but missing, ...

    def location(self) -> dict[str, Any]:
        return self.at.as_json()

    def refused(self, rejection: Rejection) -> Item:
        return replace(self, rejection=rejection)


def refused(path: Path, rejection: Rejection) -> Item:
    return Item(path=path_text(path), at=Location(container=str(path)), rejection=rejection)


def unreadable(detail: str) -> Rejection:
    return Rejection(reason=Reason.UNREADABLE_FILE, detail=detail)


def nested(kind: str) -> Rejection:
    """Of a container of any kind in a container."""
    return Rejection(reason=Reason.NESTED_ARCHIVE, detail=f"{kind}: unpack it and give it as an archive of its own")


def path_text(path: Path | str) -> str:
    """A name that can be printed and stored: what acts on a terminal, and bytes that are no UTF-8, are escapes.

    Two names never become one: backslashes before what is, or looks like, such an escape are doubled.
    """
    text = _LIKE_ESCAPES.sub(lambda found: found[0] * 2, str(path))
    return printable(text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
