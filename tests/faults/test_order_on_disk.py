"""Rule 1, as the kernel saw it: file, rename, folders, commit, and only then the answer.

kill -9 proves nothing about power cuts, because the page cache outlives the process; the order of system calls does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.make_dicom import chest
from tests.support.receiving import send

CALLS = "fsync,fdatasync,rename,renameat,renameat2,sendto,write"
STRACE = shutil.which("strace")


@dataclass(frozen=True, kw_only=True)
class Call:
    text: str
    began: int  # line of the trace
    ended: int


def calls(trace: Path) -> list[Call]:
    """The system calls in the order in which they ended; strace cuts in two what another thread interrupts."""
    begun: dict[str, tuple[str, int]] = {}
    found = []
    for number, line in enumerate(trace.read_text(errors="replace").splitlines()):
        pid, text = line.split(None, 1)
        if text.endswith("<unfinished ...>"):
            begun[pid] = text, number
        elif text.startswith("<... "):
            start, began = begun.pop(pid, ("", number))
            found.append(Call(text=start + text, began=began, ended=number))
        else:
            found.append(Call(text=text, began=number, ended=number))
    return found


def find(found: list[Call], pattern: str) -> list[Call]:
    return [call for call in found if re.search(pattern, call.text)]


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_the_answer_comes_after_file_rename_folders_and_commit(tmp_path: Path) -> None:
    var, trace = tmp_path / "var", tmp_path / "trace"
    images = [chest(64, 64, seed=seed) for seed in range(3)]
    node = subprocess.Popen(
        [str(STRACE), "-f", "-y", "-qq", "-s", "8", "-e", f"trace={CALLS}", "-o", str(trace),
         sys.executable, "-m", "tests.support.receiving", str(var)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert node.stdout
    port = int(node.stdout.readline())
    assert send(port, *images) == [0, 0, 0]
    node.communicate(timeout=60)
    found = calls(trace)
    answers = find(found, r'sendto\(\d+<[^>]*(TCP|socket)[^>]*>, "\\4')
    assert len(answers) == len(images)
    previous = -1
    for ds, answer in zip(images, answers, strict=True):
        steps = [
            find(found, rf"rename.*/incoming/.*/spool/{ds.StudyInstanceUID}/{ds.SOPInstanceUID}-\w+\.dcm"),
            find(found, rf"fsync\(\d+<{var}/spool/{ds.StudyInstanceUID}>"),
        ]
        assert [len(step) for step in steps] == [1, 1]
        (renamed,), (folder,) = steps
        part = re.search(r"incoming/(\.\w+\.part)", renamed.text)
        assert part
        (file,) = find(found, rf"fsync\(\d+<{var}/incoming/{re.escape(part[1])}>")
        written = find(found, rf"write\(\d+<{var}/incoming/{re.escape(part[1])}>")
        (spool,) = [c for c in find(found, rf"fsync\(\d+<{var}/spool>") if renamed.ended < c.began < answer.began]
        commits = [c for c in find(found, r"sync\(\d+<[^>]*\.sqlite-wal>") if previous < c.began < answer.began]
        assert max(c.ended for c in written) < file.began
        assert file.ended < renamed.began
        assert renamed.ended < min(folder.began, spool.began)
        assert max(folder.ended, spool.ended) < commits[-1].began
        assert commits[-1].ended < answer.began
        assert all(call.text.endswith("= 0") for call in (file, renamed, folder, spool, commits[-1]))
        previous = answer.ended


WRITE = "from cxrnode.store.spool import write_atomic as w; w(path, b'x' * 9)"
UNPACK = (
    "from cxrnode.inflate import unpack; import gzip, io; "
    "unpack('gzip', io.BytesIO(gzip.compress(b'x' * 9)), path, most=9)"
)


@pytest.mark.skipif(STRACE is None, reason="needs strace")
@pytest.mark.parametrize("write", [WRITE, UNPACK], ids=["a result", "an unpacked archive"])
def test_a_whole_file_is_on_the_disk_before_its_name_is(tmp_path: Path, write: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "made" / "result.dcm"
    write = f"from pathlib import Path; path = Path({str(path)!r}); {write}"
    command = [str(STRACE), "-f", "-y", "-qq", "-e", f"trace={CALLS}", "-o", str(trace), sys.executable, "-c", write]
    subprocess.run(command, check=True)
    found, part = calls(trace), rf"{path.parent}/\.result\.dcm\.\w+\.part"
    ends = [
        rf"write\(\d+<{part}>",
        rf"fsync\(\d+<{part}>",
        rf'rename\w*\(.*{part}.*"{path}"',
        rf"fsync\(\d+<{path.parent}>",
    ]
    steps = [find(found, end)[-1:] for end in ends]  # what is wrong with an archive is written beside it, and first
    assert [len(step) for step in steps] == [1, 1, 1, 1]
    order = [(call.began, call.ended) for (call,) in steps]
    assert all(ended < began for (_, ended), (began, _) in pairwise(order))
    assert all(call.text.endswith(("= 0", "= 9")) for (call,) in steps)
