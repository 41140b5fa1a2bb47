"""Two processes write below one folder, as two analyse stages on a shared data_dir do: neither sweeps the other's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxrnode.store.spool import sweep_partial

_WRITER = """
import sys
from pathlib import Path
from cxrnode.store.spool import open_atomic
with open_atomic(Path(sys.argv[1])) as f:
    f.write(b"half")
    f.flush()
    print("half", flush=True)
    sys.stdin.readline()
    f.write(b" and half")
"""
_MAKER = """
import sys
from pathlib import Path
from cxrnode.store.spool import write_atomic
for n in range(int(sys.argv[2])):
    write_atomic(Path(sys.argv[1]) / f"{n}.dcm", bytes(100))
"""


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, half way through the file `path`."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, path], stdin=-1, stdout=-1, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "half\n"
            yield process
        finally:
            process.kill()


def test_a_start_leaves_what_another_process_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "dicom" / "1.2" / "sr-1.dcm"
    with writer(path) as process:
        sweep_partial(tmp_path / "dicom")
        process.communicate("go on\n")
        assert process.returncode == 0
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_one_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    with writer(tmp_path / "a.dcm") as living, writer(tmp_path / "b.dcm") as killed:
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.iterdir())) == 2
        sweep_partial(tmp_path)
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".a.dcm.")
        living.communicate("go on\n")
    assert (tmp_path / "a.dcm").read_bytes() == b"half and half"


def test_however_often_another_process_starts_no_file_is_lost(tmp_path: Path) -> None:
    """Sweeps hit files of every age, those that were made this very moment too."""
    files = 300
    with subprocess.Popen([sys.executable, "-c", _MAKER, tmp_path, str(files)], stderr=-1, text=True) as process:
        while process.poll() is None:
            sweep_partial(tmp_path)
        assert process.stderr
        assert process.stderr.read() == ""
    assert len(list(tmp_path.glob("*.dcm"))) == files
