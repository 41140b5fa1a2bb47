"""Image results as the analyse stage hands them to the reports: clean, dirty, analysed and not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import CTImageStorage

from cxrnode.dicom.header import report_header
from cxrnode.dicom.verbatim import verbatim
from cxrnode.report.capture import build_capture
from cxrnode.report.check import check_result
from cxrnode.report.context import ReportContext
from cxrnode.types import ByteArray, FloatArray, ImageResult, Kind, Prediction, Reason, Rejection, ResultObject
from engines.bundle import Bundle, Code
from tests.support.bundles import make_bundle
from tests.support.make_dicom import chest, phantom

POSITIVE, NORMAL, UNDETERMINED = (0.93, 0.05, 0.02), (0.01, 0.02, 0.97), (0.4, 0.3, 0.3)
AT = datetime(2026, 11, 21, 22, 15, 7, 123456, tzinfo=timezone(timedelta(hours=1)))
LATE_AT = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)


def context(bundle: Bundle | None = None, at: datetime = AT) -> ReportContext:
    return ReportContext(bundle=bundle or make_bundle(), analysed_at=at, software_version="0.1.0")


def check(
    ds: Dataset, images: Sequence[ImageResult], bundle: Bundle | None = None, *, purpose: Code | None = None
) -> None:
    """The node's own checker. Raises ResultError."""
    check_result(ds, images, bundle or make_bundle(), purpose=purpose)


def header(raw: dict[str, tuple[str, bytes]] | None = None, **how: Any) -> Dataset:
    """What the store keeps of a source. `raw`: keyword -> (VR, bytes), put in unchecked, as a dirty file has them."""
    kept = report_header(chest(64, 56, **how))
    dirty = Dataset()
    for keyword, (vr, value) in (raw or {}).items():
        tag = BaseTag(tag_for_keyword(keyword) or 0)
        dirty[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    kept.update(verbatim(dirty))
    return kept


def analysed(
    source: Dataset | None = None, probabilities: tuple[float, ...] = POSITIVE, digest: str = "a1"
) -> ImageResult:
    prediction = Prediction(
        probabilities=probabilities,
        class_index=int(np.argmax(probabilities)),
        cam_max=1.5,
        engine="cpu onnxruntime 1.31.1 fp32",
    )
    return ImageResult(source=source or header(), pixel_digest=digest * 32, prediction=prediction)


def rejected(
    source: Dataset | None = None, reason: Reason = Reason.LATERAL, detail: str = "ViewPosition=LL"
) -> ImageResult:
    rejection = Rejection(reason=reason, detail=detail)
    return ImageResult(source=source or header(), pixel_digest="b2" * 32, rejection=rejection)


def preview(rows: int = 512, columns: int = 420) -> ByteArray:
    return np.asarray(phantom(rows, columns) * 255, np.uint8)


def cam(top: float = 1.5) -> FloatArray:
    small = np.zeros((5, 5), np.float32)
    small[2, 1], small[3, 1], small[1, 3] = top, 0.6 * top, 0.2 * top
    return np.asarray(cv2.GaussianBlur(small, (3, 3), 0.4), np.float32)


def _name(character_set: bytes, name: bytes, extra: dict[str, tuple[str, bytes]] | None = None) -> list[ImageResult]:
    raw = {"PatientName": ("PN", name), "SpecificCharacterSet": ("CS", character_set), **(extra or {})}
    return [analysed(header(raw))]


def _study(count: int) -> list[Dataset]:
    uids = [("2.25.77", "2.25.78", f"2.25.79{n}") for n in range(count)]
    return [header(uids=u, overrides={"InstanceNumber": n + 1}) for n, u in enumerate(uids)]


def _mixed() -> list[ImageResult]:
    one, two, three = _study(3)
    return [analysed(one), rejected(two), rejected(three, Reason.DECODER_CRASHED, "")]


def _captured() -> list[ImageResult]:
    """The report shows the captures of two of them."""
    one, two, three = _study(3)
    images = [analysed(one), analysed(three, digest="c3")]
    return [replace(image, capture=capture_of(image)) for image in images] + [rejected(two)]


def capture_of(image: ImageResult) -> ResultObject:
    """As the store has it, once it is made."""
    ds = build_capture(image, preview(), cam(), context())
    return ResultObject(
        kind=Kind.CAPTURE, sop_class_uid=ds.SOPClassUID, sop_instance_uid=ds.SOPInstanceUID,
        study_instance_uid=ds.StudyInstanceUID, series_instance_uid=ds.SeriesInstanceUID, path=Path("x"), sha256="",
    )  # fmt: skip


def _shared_uid() -> list[ImageResult]:
    source = header()
    return [analysed(source, POSITIVE, "a1"), analysed(source, NORMAL, "c3")]


def _code(value: str, scheme: str, meaning: str | None) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, scheme
    if meaning is not None:
        item.CodeMeaning = meaning
    return item


def _ordered() -> list[ImageResult]:
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP17", "SPS1"
    request.RequestedProcedureDescription = "Röntgen Thorax"
    issuer = Dataset()
    issuer.LocalNamespaceEntityID = "RIS"
    overrides = {
        "SpecificCharacterSet": "ISO_IR 100",
        "AccessionNumber": "A4711",
        "FrameOfReferenceUID": "2.25.4711",
        "RequestAttributesSequence": [request],
        "IssuerOfAccessionNumberSequence": [issuer],
        "ProcedureCodeSequence": [_code("X", "99LOCAL", None), _code("36643-5", "LN", "XR Chest 2 Views")],
    }
    return [analysed(header(overrides=overrides))]


def _dirty() -> list[ImageResult]:
    raw = {
        "PatientName": ("LO", b"Doe^John" + b"x" * 90 + b"^a^b^c^d^e^f"),
        "PatientID": ("LO", b"7" * 80 + b"\\second"),
        "PatientBirthDate": ("DA", b"19.3.1940"),
        "PatientSex": ("CS", b"male"),
        "PatientAge": ("AS", b"57"),
        "PatientSize": ("DS", b"1,80 m"),
        "PatientWeight": ("DS", b"eighty kilograms and a bit"),
        "StudyDate": ("LO", b"2026-11-21"),
        "StudyTime": ("TM", b"10:15:99"),
        "StudyID": ("SH", b"a study ID that is far too long"),
        "AccessionNumber": ("SH", b"\x00\x07 4711 with rubbish behind"),
        "StudyDescription": ("LO", b"Thorax\\p.a.\x1b"),
        "ReferringPhysicianName": ("PN", b"\xff\xfe^=\xf0=="),
        "SpecificCharacterSet": ("CS", b"ISO_IR 999"),
        "TimezoneOffsetFromUTC": ("SH", b"MEZ"),
        "SeriesNumber": ("IS", b"one"),
        "InstanceNumber": ("IS", b"1.5"),
        "ProcedureCodeSequence": ("LO", b"no sequence"),
        "PatientOrientation": ("CS", b"links\\unten"),
        "FrameOfReferenceUID": ("UI", b"1.02.3"),
    }
    return [analysed(header(raw))]


def _ct() -> list[ImageResult]:
    source = header(overrides={"Modality": "CT", "SOPClassUID": CTImageStorage})
    return [rejected(source, Reason.WRONG_MODALITY, "Modality=CT")]


SCENARIOS: dict[str, Callable[[], list[ImageResult]]] = {
    "positive": lambda: [analysed()],
    "normal": lambda: [analysed(probabilities=NORMAL)],
    "undetermined": lambda: [analysed(header(kind="DX"), UNDETERMINED)],
    "lateral": lambda: [rejected()],
    "ct": _ct,
    "no_pixels": lambda: [rejected(header(kind="SC"), Reason.NO_PIXELS, "")],
    "mixed": _mixed,
    "captured": _captured,
    "shared_uid": _shared_uid,
    "no_type_2": lambda: [analysed(header(drop_type2=True))],
    "no_type_2_rejected": lambda: [rejected(header(kind="DX", drop_type2=True))],
    "ordered": _ordered,
    "dirty": _dirty,
    "japanese": lambda: _name(
        b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"
    ),
    "korean": lambda: _name(b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    "cyrillic": lambda: _name(b"ISO_IR 144", "Люкceмбypг".encode("iso8859_5")),
    "utf8": lambda: _name(
        b"ISO_IR 192", "Wang^XiaoDong=王^小東".encode(), {"StudyDescription": ("LO", "胸部".encode())}
    ),
    "undeclared": lambda: _name(b"", "Müller^Jürgen".encode("latin_1")),
    "misspelt": lambda: _name(b"ISO-IR 100", "Müller^Jürgen".encode("latin_1")),
}  # fmt: skip
