"""Whatever the bytes: a result, or `Rejected` with a reason. Never another exception, and never a picture from a file
that ends early."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_files

from cxrnode.dicom.header import header_to_bytes, report_header
from cxrnode.dicom.pixels import load_grey
from cxrnode.dicom.read import pixel_digest, read_header, read_instance
from cxrnode.dicom.select import select
from cxrnode.errors import Rejected
from cxrnode.types import Reason
from tests.support.make_dicom import SYNTAXES, chest, to_bytes

HEADER = 2200  # bytes: what stands before the pixels, in the files below
slow = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@cache
def valid(syntax: str, kind: str) -> bytes:
    return to_bytes(chest(80, 72, syntax=syntax, kind=kind, bits_stored=8 if syntax == "jpeg_baseline" else 12))


FILES = st.builds(valid, st.sampled_from(sorted(SYNTAXES)), st.sampled_from(["CR", "DX", "SC"]))


def process(raw: bytes) -> Reason | None:
    """What the node does with a file, but for the engine. None: it would be analysed."""
    with suppress(Rejected), BytesIO(raw) as f:
        header_to_bytes(report_header(read_header(f)))
    try:
        ds = read_instance(raw)
        pixel_digest(ds)
        rejection = select(ds)
        grey = load_grey(ds, long_side=256)
    except Rejected as rejected:
        return rejected.rejection.reason
    assert grey.pixels.min() >= 0
    assert grey.pixels.max() <= 1
    return None if rejection is None else rejection.reason


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kind", ["CR", "DX", "SC"])
def test_the_valid_files_are_accepted(syntax: str, kind: str) -> None:
    assert process(valid(syntax, kind)) is None


@slow
@given(st.binary(max_size=400))
def test_random_bytes(raw: bytes) -> None:
    assert process(raw) == Reason.NOT_DICOM


@slow
@given(st.binary(max_size=400))
def test_random_bytes_after_the_prefix(raw: bytes) -> None:
    assert process(bytes(128) + b"DICM" + raw) is not None


@settings(slow, max_examples=100)
@given(FILES, st.floats(0, 1, exclude_max=True))
def test_file_cut_anywhere(raw: bytes, where: float) -> None:
    assert process(raw[: int(where * (len(raw) - 2))]) is not None


@settings(slow, max_examples=100)
@given(FILES, st.lists(st.tuples(st.integers(0, HEADER), st.integers(0, 255)), min_size=1, max_size=3))
def test_bytes_of_the_header_changed(raw: bytes, changes: list[tuple[int, int]]) -> None:
    process(changed(raw, changes))


@settings(slow, max_examples=100)
@given(FILES, st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=3))
def test_bytes_anywhere_changed(raw: bytes, changes: list[tuple[int, int]]) -> None:
    process(changed(raw, changes))


def changed(raw: bytes, changes: list[tuple[int, int]]) -> bytes:
    buffer = bytearray(raw)
    for at, value in changes:
        buffer[at % len(buffer)] = value
    return bytes(buffer)


def test_all_of_pydicoms_files() -> None:
    """260 files with every defect its maintainers met. Four are chest radiographs."""
    paths = [Path(p) for p in get_testdata_files() if os.path.isfile(p)]
    accepted = {path.name for path in paths if process(path.read_bytes()) is None}
    assert accepted == {"RG1_UNCI.dcm", "RG1_UNCR.dcm", "RG1_J2KI.dcm", "RG1_J2KR.dcm"}
