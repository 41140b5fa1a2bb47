"""The flat pass, fragments and run lengths at their limits, with bytes written by hand (PS3.5 sections 7, A.4, G)."""

from __future__ import annotations

import ast
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import pytest
from pydicom import Dataset, valuerep
from pydicom.datadict import tag_for_keyword

import cxrnode.dicom
from cxrnode.dicom import budget
from cxrnode.dicom.budget import Budget
from cxrnode.dicom.flat import LONG_VRS, SHORT_VRS, UNDEFINED, FlatReader, Inflated, Stream, is_explicit
from cxrnode.dicom.fragments import fragments, walk
from cxrnode.dicom.header import image_result, instance_header
from cxrnode.dicom.needed import KEPT, TAGS
from cxrnode.dicom.read import read_header, read_instance
from cxrnode.dicom.runlength import decode_planes
from cxrnode.dicom.scu import Answer
from cxrnode.dicom.text import text_of
from cxrnode.errors import Rejected
from cxrnode.types import Prediction, Reason, Rejection, StoredImage
from tests.support.make_dicom import chest, to_bytes

STOP = 0x7FE00010
PATIENT_ID, MODALITY, WINDOW, LUT = 0x00100020, 0x00080060, 0x00281050, 0x00283000


def element(tag: int, value: bytes, vr: bytes = b"LO") -> bytes:
    """Explicit VR little endian."""
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<HL", 0, len(value)) if vr in LONG_VRS else struct.pack("<H", len(value))) + value


def items(*contents: bytes) -> bytes:
    return b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(c)) + c for c in contents)


PIXELS = element(STOP, b"", b"OW")


def header(raw: bytes, *wanted: int, most: Budget = budget.HEADER) -> Dataset:
    reader = FlatReader(Stream(BytesIO(raw)), implicit=False, little=True, most=most)
    return reader.header(wanted or (PATIENT_ID, MODALITY), stop=STOP)[0]


def refused(raw: bytes, *wanted: int, most: Budget = budget.HEADER) -> tuple[Reason, str] | None:
    try:
        header(raw, *wanted, most=most)
    except Rejected as e:
        return e.rejection.reason, e.rejection.detail
    return None


# -- budgets: so much, and not one more


@pytest.mark.parametrize(("elements", "why"), [(3, None), (2, (Reason.TOO_LARGE, "too many elements"))])
def test_elements_are_counted_whether_kept_or_passed_over(elements: int, why: object) -> None:
    raw = element(0x00080070, b"made by") + element(PATIENT_ID, b"P1") + PIXELS
    assert refused(raw, most=Budget(elements=elements)) == why


@pytest.mark.parametrize(
    ("value", "vr", "kept", "fits"),
    [(b"A", b"LO", 1, True), (b"A\\B", b"LO", 2, True), (b"A\\B", b"LO", 1, False), (b"\x1b$BA", b"LO", 2, True),
     (b"\x1b$BA", b"LO", 1, False), (b"\\" * 4, b"OB", 1, True)],
)  # fmt: skip
def test_each_value_and_each_escape_sequence_counts(value: bytes, vr: bytes, kept: int, fits: bool) -> None:
    why = refused(element(PATIENT_ID, value, vr) + PIXELS, most=Budget(kept=kept))
    assert why == (None if fits else (Reason.TOO_LARGE, "too many values"))


@pytest.mark.parametrize(("size", "fits"), [(100, True), (102, False)])
def test_bytes_that_are_kept_have_a_budget_and_tables_another(size: int, fits: bool) -> None:
    most = Budget(kept_bytes=100, table_bytes=300)
    said = None if fits else (Reason.TOO_LARGE, f"PatientID has {size} bytes")
    assert refused(element(PATIENT_ID, b"P" * size) + PIXELS, most=most) == said
    assert refused(element(0x00080070, b"P" * 5000) + PIXELS, most=most) is None  # passed over
    table = items(element(0x00283006, bytes(size), b"OW"))
    tables = element(LUT, table, b"SQ")
    whole = len(table) + size  # counted as the sequence's and as the item's
    assert refused(tables + PIXELS, LUT, most=Budget(kept_bytes=1, table_bytes=whole)) is None
    too_large = refused(tables + PIXELS, LUT, most=Budget(kept_bytes=1, table_bytes=whole - 1))
    assert too_large == (Reason.TOO_LARGE, f"LUTData has {size} bytes")


@pytest.mark.parametrize(("depth", "fits"), [(16, True), (17, False)])
def test_sequences_may_be_sixteen_deep(depth: int, fits: bool) -> None:
    raw = b""
    for _ in range(depth):
        raw = element(0x00081032, items(raw) if raw else b"", b"SQ")
    said = None if fits else (Reason.TOO_LARGE, "sequences 16 deep")
    assert refused(raw + PIXELS, 0x00081032) == said


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
@pytest.mark.parametrize("way", ["take", "skip", "rest", "read"])
def test_an_object_may_have_so_many_bytes_and_no_more(
    way: str, more: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "OBJECT_BYTES", 200_000)
    stream, size = Stream(BytesIO(bytes(200_000 + more))), 200_000 + more

    def reads() -> None:
        if way == "rest":
            assert len(stream.rest()) == size
        elif way == "read":
            while stream.read(1 << 20):
                pass
        else:
            getattr(stream, way)(size)
            assert stream.position == size

    if fits:
        reads()
        return
    with pytest.raises(Rejected) as caught:
        reads()
    assert caught.value.rejection.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("way", ["take", "skip"])
@pytest.mark.parametrize(("there", "fits"), [(70_000, True), (69_999, False), (10, False)])
def test_what_ends_before_its_length_is_truncated(way: str, there: int, fits: bool) -> None:
    stream = Stream(BytesIO(bytes(there)))
    stream.window(12)
    if fits:
        getattr(stream, way)(70_000)
        assert stream.position == 70_000
        assert stream.read(1) == b""
        return
    with pytest.raises(Rejected) as caught:
        getattr(stream, way)(70_000)
    assert caught.value.rejection.reason is Reason.TRUNCATED


def test_what_was_skipped_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across the buffer's end and within it, the next byte is the next byte."""
    data = bytes(range(256)) * 800
    for skips in ([1], [255, 1], [65_535, 1], [65_536], [65_537, 7], [130_000], [1, 130_000, 2]):
        stream, at = Stream(BytesIO(data)), sum(skips)
        for count in skips:
            stream.skip(count)
        assert (stream.position, stream.take(3)) == (at, data[at : at + 3])


# -- heads


def test_the_value_representations_are_those_of_the_standard() -> None:
    long = {vr.value for vr in valuerep.EXPLICIT_VR_LENGTH_32}
    every = {vr.value for vr in valuerep.VR if len(vr.value) == 2}
    assert {vr.decode() for vr in LONG_VRS} == long
    assert {vr.decode() for vr in SHORT_VRS} == every - long


@pytest.mark.parametrize(
    ("first", "explicit"),
    [(b"\x08\0\x05\0CS", True), (b"\x08\0\x05\0\x0a\0", False), (b"\x08\0\x05\0cs", False), (b"\x08\0\x05\0C1", False),
     (b"\x08\0\x05\0C", False), (b"\x08\0\x05\0ZZ", True)],
)  # fmt: skip
def test_explicit_vr_is_two_capital_letters(first: bytes, explicit: bool) -> None:
    assert is_explicit(first) is explicit


@pytest.mark.parametrize(
    ("tail", "why"),
    [(b"", None), (bytes(7), None), (element(PATIENT_ID, b"P1")[:-1], Reason.TRUNCATED),
     (element(PATIENT_ID, b"", b"OB")[:11], Reason.TRUNCATED), (element(PATIENT_ID, b"", b"OB"), None),
     (struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, UNDEFINED), Reason.TRUNCATED)],
)  # fmt: skip
def test_where_a_data_set_may_end(tail: bytes, why: Reason | None) -> None:
    said = refused(element(MODALITY, b"CR") + tail)
    assert (said[0] if said else None) == why


def test_an_element_in_implicit_vr_among_explicit_ones_is_read() -> None:
    raw = element(MODALITY, b"CR") + struct.pack("<HHL", 0x0010, 0x0020, 2) + b"P1" + PIXELS
    assert header(raw)[PATIENT_ID].value == "P1"


def test_what_is_wanted_is_kept_up_to_the_pixels() -> None:
    later = element(0x7FE10010, b"P9")
    ds = header(element(MODALITY, b"CR") + element(PATIENT_ID, b"P1") + PIXELS + later)
    assert [(e.tag, e.value) for e in ds] == [(MODALITY, "CR"), (PATIENT_ID, "P1")]


# -- deflated


def test_a_deflated_stream_is_read_to_its_end_and_may_not_end_early() -> None:
    data = bytes(range(256)) * 1000
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = raw.compress(data) + raw.flush()
    assert Inflated(Stream(BytesIO(deflated))).read(1 << 20) == data
    inflated = Inflated(Stream(BytesIO(deflated)))
    assert (inflated.read(300), inflated.seek(1000, 1)) == (data[:300], 0)
    assert inflated.read(5) == data[1300:1305]
    with pytest.raises(Rejected) as caught:
        Inflated(Stream(BytesIO(deflated[:-5]))).read(1 << 20)
    assert caught.value.rejection.reason is Reason.TRUNCATED
    with pytest.raises(Rejected) as caught:
        Inflated(Stream(BytesIO(b"\xff" * 90))).read(1 << 20)
    assert caught.value.rejection.reason is Reason.UNREADABLE_FILE


# -- fragments

END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def test_fragments_are_what_follows_the_offset_table_up_to_the_delimiter() -> None:
    raw = items(b"\0" * 4, b"one", b"two2")
    assert [bytes(f) for f in fragments(raw)] == [b"one", b"two2"]
    assert [bytes(f) for f in fragments(raw + END)] == [b"one", b"two2"]
    assert list(fragments(b"")) == []
    assert walk(raw + END + b"more") == len(raw)


@pytest.mark.parametrize(
    ("raw", "why"),
    [(items(b"", b"one"), Reason.TRUNCATED), (items(b"", b"one") + END[:7], Reason.TRUNCATED),
     (items(b"", b"one")[:-1] + END + bytes(8), Reason.UNDECODABLE), (items(b"")[:-1], Reason.TRUNCATED),
     (struct.pack("<HHL", 0xFFFE, 0xE000, 9) + b"short" + b"\0" * 3, Reason.TRUNCATED),
     (struct.pack("<HHL", 0x7FE0, 0x0010, 0) + END, Reason.UNDECODABLE)],
)  # fmt: skip
def test_damaged_fragments_say_how(raw: bytes, why: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        walk(raw)
    assert caught.value.rejection.reason is why


@pytest.mark.parametrize(("elements", "fits"), [(3, True), (2, False)])
def test_fragments_are_counted(elements: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "HEADER", Budget(elements=elements))
    raw = items(b"", b"one") + END
    if fits:
        assert walk(raw) == len(raw) - 8
        return
    with pytest.raises(Rejected) as caught:
        walk(raw)
    assert caught.value.rejection.reason is Reason.TOO_LARGE


# -- run lengths


def rle(*segments: bytes, count: int | None = None, first: int = 64) -> bytes:
    starts = [first + sum(map(len, segments[:n])) for n in range(len(segments))]
    head = struct.pack("<16L", len(segments) if count is None else count, *starts, *[0] * (15 - len(starts)))
    return head + b"".join(segments)


def packed(plane: bytes) -> bytes:
    return bytes(imagecodecs.packbits_encode(plane))


def test_the_high_byte_comes_first() -> None:
    high, low = bytes([1, 2, 3, 4]), bytes([5, 6, 7, 8])
    (plane,) = decode_planes(rle(packed(high), packed(low)), rows=2, columns=2, samples=1, allocated=16)
    assert plane.tolist() == [[0x0105, 0x0206], [0x0307, 0x0408]]
    planes = decode_planes(rle(packed(high), packed(low)), rows=2, columns=2, samples=2, allocated=8)
    assert [p.tobytes() for p in planes] == [high, low]


@pytest.mark.parametrize(("size", "fits"), [(99, False), (100, True), (1124, True), (1125, False)])
def test_a_plane_has_its_bytes_and_a_kilobyte_of_padding_at_most(size: int, fits: bool) -> None:
    frame = rle(packed((bytes(range(100)) * 12)[:size]))
    if fits:
        (plane,) = decode_planes(frame, rows=10, columns=10, samples=1, allocated=8)
        assert plane.tobytes() == bytes(range(100))
        return
    with pytest.raises((ValueError, RuntimeError)):
        decode_planes(frame, rows=10, columns=10, samples=1, allocated=8)


@pytest.mark.parametrize(
    "frame",
    [bytes(63), rle(packed(b"abcd"), count=0), rle(packed(b"abcd"), count=16), rle(packed(b"abcd"), first=65),
     rle(packed(b"abcd"), packed(b"abcd")), struct.pack("<16L", 1, 64, *[0] * 14)],
    ids=["short", "none", "sixteen", "begins late", "one too many", "empty"],
)  # fmt: skip
def test_a_damaged_run_length_header(frame: bytes) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        decode_planes(frame, rows=2, columns=2, samples=1, allocated=8)


# -- what is read of a source at all


def keywords(*files: str) -> set[str]:
    """The DICOM keywords that these modules name."""
    folder = Path(cxrnode.dicom.__file__).parent
    nodes = [n for name in files for n in ast.walk(ast.parse((folder / f"{name}.py").read_text()))]
    words = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {word for word in words if word and tag_for_keyword(word)}


def test_what_the_gate_and_the_picture_ask_for_is_read() -> None:
    asked = keywords("select", "orientation", "tone", "codecs", "pixels")
    elsewhere = {"PixelData", "TransferSyntaxUID", "CodeValue", "LUTData", "LUTDescriptor"}
    assert {"ViewPosition", "RescaleSlope", "BitsStored"} <= asked
    assert {k for k in asked - elsewhere if tag_for_keyword(k) not in TAGS} == set()
    tables = {f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue")
              for part in ("Data", "Descriptor")}  # fmt: skip
    segmented = {f"Segmented{word}" for word in tables if word.endswith("Data")}
    assert {tag_for_keyword(k) for k in tables | segmented} <= TAGS  # pydicom's decoder asks for them


def test_what_the_results_carry_of_patient_study_and_series_is_kept() -> None:
    """PS3.3 tables C.7-1, C.7-3, C.7-4a, C.7-5a, C.7-6, C.12-1: what a PACS files and a reader compares."""
    carried = {
        "SpecificCharacterSet", "TimezoneOffsetFromUTC", "PatientName", "PatientID", "IssuerOfPatientID",
        "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate", "PatientSex", "OtherPatientIDsSequence",
        "PatientAge", "PatientSize", "PatientWeight", "PatientComments", "StudyInstanceUID", "StudyDate", "StudyTime",
        "StudyID",
        "StudyDescription", "AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferringPhysicianName",
        "ProcedureCodeSequence", "ReferencedStudySequence", "RequestAttributesSequence",
        "ReferencedPerformedProcedureStepSequence", "InstitutionName", "SeriesInstanceUID", "SeriesNumber",
        "SeriesDescription", "Modality", "BodyPartExamined", "AnatomicRegionSequence", "ViewPosition",
        "ViewCodeSequence", "PatientOrientation", "ImageOrientationPatient", "Laterality", "FrameOfReferenceUID",
        "PositionReferenceIndicator", "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "AcquisitionDate",
        "AcquisitionTime", "ContentDate", "ContentTime", "Rows", "Columns", "PhotometricInterpretation", "Manufacturer",
        "ManufacturerModelName", "NumberOfFrames", "LossyImageCompression", "LossyImageCompressionRatio",
        "LossyImageCompressionMethod",
    }  # fmt: skip
    assert carried <= KEPT


def test_the_store_s_header_names_patient_and_order() -> None:
    said: dict[str, Any] = {"PatientID": "P1", "AccessionNumber": "A1"}
    found = instance_header(read_instance(to_bytes(ds := chest(64, 64, overrides=said))))
    assert (found.patient_id, found.accession_number) == ("P1", "A1")
    uids = (found.study_instance_uid, found.series_instance_uid, found.sop_instance_uid, found.sop_class_uid)
    assert uids == (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, ds.SOPClassUID)


def test_a_header_is_read_to_its_end_only_where_that_is_asked_for() -> None:
    cut = to_bytes(chest(64, 64))[:-1]
    assert read_header(BytesIO(cut)).Rows == 64
    with pytest.raises(Rejected) as caught:
        read_header(BytesIO(cut), whole=True)
    assert caught.value.rejection.reason is Reason.TRUNCATED
    assert read_header(BytesIO(to_bytes(chest(64, 64))), whole=True).Rows == 64


@pytest.mark.parametrize("first", ["LanguageCodeSequence", "SpecificCharacterSet"])
def test_a_data_set_may_begin_with_an_element_of_either_length(first: str) -> None:
    ds = chest(64, 64, overrides={"SpecificCharacterSet": None})
    setattr(ds, first, [] if first.endswith("Sequence") else "ISO_IR 100")
    found = read_instance(to_bytes(ds))
    assert (found.SOPInstanceUID, found.Rows) == (ds.SOPInstanceUID, 64)


def test_pydicom_says_nothing_in_any_process_of_the_node() -> None:
    """Its warnings and its log quote values, which may be patient data."""
    said = "PatientID of nobody"
    code = (
        "import warnings, logging, sys; logging.basicConfig(); import cxrnode.dicom; from pydicom import config;"
        "from pydicom.charset import convert_encodings;"
        f"convert_encodings([{said!r}]); logging.getLogger('pydicom').error({said!r});"
        "warnings.warn('of others');"
        "sys.exit(config.settings.reading_validation_mode != config.IGNORE)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said not in done.stderr + done.stdout
    assert "of others" in done.stderr


def test_a_stored_image_is_read_back_with_all_that_was_said_of_it() -> None:
    kept = instance_header(read_instance(to_bytes(chest(64, 64, overrides={"PatientID": "P1"})))).kept
    why, numbers = Rejection(reason=Reason.LATERAL), Prediction(
        probabilities=(1.0,), class_index=0, cam_max=1.0, engine="cpu"
    )  # fmt: skip
    found = image_result(StoredImage(kept_header=kept, pixel_digest="d", prediction=numbers, rejection=why))
    assert (found.pixel_digest, found.prediction, found.rejection) == ("d", numbers, why)
    assert text_of(found.source, "PatientID") == "P1"


# -- what a peer's answer means (PS3.4 table B.2-1, PS3.7 annex C)


@pytest.mark.parametrize(
    ("status", "accepted", "transient"),
    [(0x0000, True, False), (0xB000, True, False), (0xB007, True, False), (0xBFFF, True, False), (0xC000, False, False),
     (0xA6FF, False, False), (0xA700, False, True), (0xA7FF, False, True), (0xA800, False, False),
     (0xA900, False, False), (0x0110, False, True), (0x0213, False, True), (0x0122, False, False),
     (0x0001, False, False), (None, False, False)],
)  # fmt: skip
def test_which_answers_accept_and_which_are_to_be_tried_again(
    status: int | None, accepted: bool, transient: bool
) -> None:
    answer = Answer(status=status, text="its words")
    assert (answer.accepted, answer.transient) == (accepted, transient)
    assert answer.code == ("its words" if status is None else f"0x{status:04X}")
