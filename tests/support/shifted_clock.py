"""Real processes with a wall clock that is set while they run (see shifted_clock.c)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop.conftest import require

_SOURCE = Path(__file__).with_suffix(".c")


class ShiftedClock:
    """Of the processes that are started from here on, by whoever has `environment`."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        require([] if compiler else ["cc"])
        library, self._file = folder / "shifted_clock.so", folder / "shifted_clock"
        self.off(0)
        subprocess.run([str(compiler), "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(self._file)}

    def off(self, seconds: float) -> None:
        """From now on the clock is so many seconds ahead."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:.0f}\n")
        new.rename(self._file)

    def put_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
