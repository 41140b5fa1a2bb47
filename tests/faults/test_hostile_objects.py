"""Objects made to cost minutes or gigabytes: each is read, or refused with a reason, in no time and little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from cxrnode.types import Reason
from tests.support.hostile import KINDS

MOST_CPU_S = 1.0  # of a pass over the header: the listener shares its interpreter with every other association
MOST_DECODE_CPU_S = 5.0
MOST_MIB = 400  # above what the libraries take
SPARSE = "sparse"

READ = """
import json, sys, time
from pathlib import Path
from cxrnode.dicom.header import instance_header
from cxrnode.dicom.pixels import load_grey
from cxrnode.dicom.read import read_header, read_instance
from cxrnode.errors import Rejected

def memory(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key)) / 1024

def scan(f):
    instance_header(read_header(f))

def whole(f):
    instance_header(read_header(f, whole=True))

def picture(f):
    load_grey(read_instance(f))

for path in sorted(Path(sys.argv[1]).iterdir()):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, told = memory("VmRSS"), []
    for step in (scan, whole, picture):
        began = time.process_time()
        try:
            with path.open("rb") as f:
                step(f)
            reason = ""
        except Rejected as rejected:
            reason = rejected.rejection.reason.value
        told.append((reason, time.process_time() - began))
    print(json.dumps([path.stem, told, memory("VmHWM") - before]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    reasons: list[str]  # of the scan of the header, of its pass to the end, of the picture; "" where there is none
    seconds: list[float]  # of CPU time
    mib: float


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, make in KINDS.items():
        (folder / f"{name}.dcm").write_bytes(make())
    with (folder / f"{SPARSE}.dcm").open("wb") as f:  # five gigabytes that take no room on the disk
        f.write(KINDS["length-4g"]())
        f.truncate(5 << 30)
    ran = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], check=True, stdout=subprocess.PIPE, text=True, timeout=300
    )
    found = {}
    for line in ran.stdout.splitlines():
        name, steps, mib = json.loads(line)
        found[name] = Told(reasons=[r for r, _ in steps], seconds=[s for _, s in steps], mib=mib)
    return found


@pytest.mark.parametrize("kind", [*KINDS, SPARSE])
def test_a_hostile_object_costs_little(kind: str, told: dict[str, Told]) -> None:
    one = told[kind]
    assert one.mib < MOST_MIB
    assert max(one.seconds[:2]) < MOST_CPU_S
    assert one.seconds[2] < MOST_DECODE_CPU_S
    usual = {"", Reason.TOO_LARGE, Reason.TRUNCATED, Reason.UNDECODABLE, Reason.IMPLAUSIBLE_PIXELS}
    assert set(one.reasons) <= usual


@pytest.mark.parametrize("kind", ["items", "items-big-endian", "nested", "nested-implicit", "nested-un"])
def test_what_nobody_needs_is_passed_over_and_the_film_is_read(kind: str, told: dict[str, Told]) -> None:
    assert told[kind].reasons == ["", "", ""]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("items-kept", Reason.TOO_LARGE), ("nested-kept", Reason.TOO_LARGE), ("text-60m", Reason.TOO_LARGE),
        ("deflated-items", Reason.TOO_LARGE), ("length-4g", Reason.TRUNCATED), ("fragments", Reason.TOO_LARGE),
        ("rle-bomb", Reason.UNDECODABLE), ("j2k-components", Reason.UNDECODABLE),
        ("j2k-many-tiles", Reason.UNDECODABLE), (SPARSE, Reason.TOO_LARGE),
    ],
)  # fmt: skip
def test_what_is_too_much_is_called_so(kind: str, expected: Reason, told: dict[str, Told]) -> None:
    assert told[kind].reasons[-1] == expected


def test_a_file_far_too_large_is_told_by_its_first_bytes(told: dict[str, Told]) -> None:
    assert told[SPARSE].reasons == [Reason.TOO_LARGE] * 3
    assert told[SPARSE].mib < 20
