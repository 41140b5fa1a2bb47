"""Files that are there whole or not at all, whatever ends the process or fills the disk."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.recipe import RecipeError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when all went well; two writers, on whatever host, do not meet in it.

    Raises RecipeError where it cannot be written; what stood at `path` before still stands, and nothing is left over.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except (OSError, RuntimeError) as e:  # torch's writer raises RuntimeError on a full disk
        why = e.strerror if isinstance(e, OSError) and e.strerror else str(e).partition("\n")[0]
        raise RecipeError(f"cannot write {path} ({why}): make room or name another folder, and start again") from e
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
