"""A node's studies: films to send it, and waiting until their results are where they belong."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from tests.support.make_dicom import chest, write
from tests.support.orthanc import Orthanc

T = TypeVar("T")
WAIT_S = 60.0
ONE_SET = Counter({Comprehensive3DSRStorage: 1, SecondaryCaptureImageStorage: 1})


def await_true(what: Callable[[], T], why: Callable[[], str] = str, seconds: float = WAIT_S, every_s: float = 0.1) -> T:
    """What `what()` gives, once it is true. Raises AssertionError with `why()` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, why()
        time.sleep(every_s)
    return found


def study_uid(number: int) -> str:
    return f"1.2.826.0.1.57.{number}"


def film(folder: Path, number: int) -> Path:
    """The one film of study `number`."""
    root = study_uid(number)
    return write(chest(160, 140, seed=number, uids=(root, f"{root}.1", f"{root}.1.1")), folder / f"{number}.dcm")


def results_of(orthanc: Orthanc, number: int) -> Counter[str]:
    """How many objects of each SOP class the PACS holds that the node made of study `number`."""
    made = orthanc.find("Instance", StudyInstanceUID=study_uid(number), Manufacturer="cxrnode")
    return Counter(orthanc.get(f"/instances/{i}/metadata/SopClassUid").decode().strip("\0 ") for i in made)
