"""How the program counts in its messages."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """(1, "image") as "1 image", (2, "image") as "2 images", (2, "study") as "2 studies"."""
    if n == 1:
        return f"1 {noun}"
    return f"{n} {noun[:-1]}ies" if noun.endswith(("dy", "ry")) else f"{n} {noun}s"
