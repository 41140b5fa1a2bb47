"""What a fit writes: whole files, or an error of the recipe's kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines import files
from training.recipe import RecipeError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """`engines.files.whole`. Raises RecipeError where it cannot be written."""
    try:
        with files.whole(path) as part:
            yield part
    except (OSError, RuntimeError) as e:  # torch's writer raises RuntimeError on a full disk
        why = e.strerror if isinstance(e, OSError) and e.strerror else str(e).partition("\n")[0]
        raise RecipeError(f"cannot write {path} ({why}): make room or name another folder, and start again") from e
