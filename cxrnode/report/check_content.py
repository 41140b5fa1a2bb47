"""What the content tree of a report must be, item by item: stated here anew, and not taken from what builds it.

The codes are those of PS3.16 annex D (DCM), of TID 1500, 1501, 300, 1001, 1004, 1204 and 4019, and of CID 240, 6042 and
6047. An image's verdict is what its probabilities and the bundle's thresholds make it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cxrnode.dicom.uids import is_valid_uid
from cxrnode.report.source import Header
from cxrnode.types import ImageResult, Outcome, Prediction, Reason
from engines.bundle import Bundle, Code, Label


class Triple(NamedTuple):
    """A code."""

    value: str
    scheme: str
    meaning: str


class Line(NamedTuple):
    """A content item and how deep it stands; value: see `check_tree`, ANY and A_UID where nobody can state it."""

    depth: int
    relation: str
    kind: str
    name: Triple
    value: object


def dcm(value: str, meaning: str) -> Triple:
    return Triple(value, "DCM", meaning)


def sct(value: str, meaning: str) -> Triple:
    return Triple(value, "SCT", meaning)


ANY, A_UID = object(), object()
MOD, CONTEXT, CONTAINS = "HAS CONCEPT MOD", "HAS OBS CONTEXT", "CONTAINS"
PRESENT, ABSENT = sct("52101004", "Present"), sct("272519000", "Absent")
UNDETERMINED = sct("373068000", "Undetermined")
FINDING = dcm("121071", "Finding")
SUMMARY = dcm("121111", "Summary")
TRACKING_IDENTIFIER = dcm("112039", "Tracking Identifier")
TRACKING_UID = dcm("112040", "Tracking Unique Identifier")
OBSERVER_UID = dcm("121012", "Device Observer UID")
NO_UNITS = Triple("1", "UCUM", "no units")
_RUN_STATUS = {  # by (all analysed, any finding)
    (True, False): dcm("111241", "All algorithms succeeded; without findings"),
    (True, True): dcm("111242", "All algorithms succeeded; with findings"),
    (False, False): dcm("111243", "Not all algorithms succeeded; without findings"),
    (False, True): dcm("111244", "Not all algorithms succeeded; with findings"),
}
_NONE_SUCCEEDED = dcm("111245", "No algorithms succeeded; without findings")
_NO_CHEST = {Reason.WRONG_MODALITY, Reason.WRONG_BODY_PART, Reason.NOT_A_PATIENT}


def in_reading_order(images: Sequence[ImageResult]) -> list[ImageResult]:
    """By series number, instance number, SOP Instance UID and pixels."""

    def place(image: ImageResult) -> tuple[int, int, str, str]:
        header = Header(image.source)
        series, instance = (int(header.get(k) or 0) for k in ("SeriesNumber", "InstanceNumber"))
        return series, instance, header.get("SOPInstanceUID"), image.pixel_digest

    return sorted(images, key=place)


def head(ordered: Sequence[ImageResult], bundle: Bundle) -> Iterator[Line]:
    """The report's items as they stand one below the other, down to the measurement groups."""
    yield Line(0, "", "CONTAINER", dcm("126000", "Imaging Measurement Report"), ("SEPARATE", "1500", "DCMR"))
    english = Triple("en-US", "RFC5646", "English (United States)")
    yield Line(1, MOD, "CODE", dcm("121049", "Language of Content Item and Descendants"), english)
    yield Line(1, CONTEXT, "CODE", dcm("121005", "Observer Type"), dcm("121007", "Device"))
    yield Line(1, CONTEXT, "UIDREF", OBSERVER_UID, A_UID)
    name = _ours(f"{bundle.name} {bundle.manifest.version}")
    yield Line(1, CONTEXT, "TEXT", dcm("121013", "Device Observer Name"), name)
    yield Line(1, CONTEXT, "TEXT", dcm("121014", "Device Observer Manufacturer"), "cxrnode")
    model = "cxrnode chest radiograph analysis"
    yield Line(1, CONTEXT, "TEXT", dcm("121015", "Device Observer Model Name"), model)
    yield Line(1, CONTEXT, "TEXT", dcm("121016", "Device Observer Serial Number"), bundle.digest[:16])
    yield Line(1, MOD, "CODE", dcm("121058", "Procedure reported"), _procedure(ordered))
    yield Line(1, CONTAINS, "CODE", dcm("111017", "CAD Processing and Findings Summary"), _status(ordered, bundle))
    yield Line(1, CONTAINS, "TEXT", SUMMARY, ANY)  # the checks of the summary see to it
    yield Line(1, CONTAINS, "CONTAINER", dcm("126010", "Imaging Measurements"), ("SEPARATE", "", ""))


def group(image: ImageResult, bundle: Bundle, tracking_uid: object) -> Iterator[Line]:
    """One image, whose group has this Tracking Unique Identifier."""
    said, prediction = image_text(image, bundle), image.prediction
    tracked = f"{bundle.name} {str(tracking_uid)[-16:]}" if is_valid_uid(tracking_uid) else ANY
    yield Line(2, CONTAINS, "CONTAINER", dcm("125007", "Measurement Group"), ("SEPARATE", "1501", "DCMR"))
    yield Line(3, CONTEXT, "TEXT", TRACKING_IDENTIFIER, tracked)
    yield Line(3, CONTEXT, "UIDREF", TRACKING_UID, A_UID)
    if prediction:
        label = first_of(bundle, prediction)
        yield Line(3, CONTAINS, "CODE", FINDING, triple(label.code) if label else UNDETERMINED)
        yield Line(3, MOD, "CODE", sct("363698007", "Finding Site"), sct("39607008", "Lung"))
    yield Line(3, MOD, "TEXT", dcm("111001", "Algorithm Name"), bundle.name)
    yield Line(3, MOD, "TEXT", dcm("111003", "Algorithm Version"), _ours(bundle.manifest.version))
    for parameter in _parameters(bundle, prediction):
        yield Line(3, MOD, "TEXT", dcm("111002", "Algorithm Parameters"), parameter)
    yield Line(3, MOD, "TEXT", dcm("122405", "Algorithm Manufacturer"), "cxrnode")
    if prediction:
        for label, p in zip(bundle.labels, prediction.probabilities, strict=True):
            yield Line(3, CONTAINS, "NUM", dcm("122157", "Probability"), p)
            yield Line(4, MOD, "CODE", FINDING, triple(label.code))
    header = Header(image.source)
    reference = (header.get("SOPClassUID"), header.get("SOPInstanceUID"))
    yield Line(3, CONTAINS, "IMAGE or COMPOSITE", sct("260753009", "Source"), reference)
    if made := image.capture:
        name = dcm("130403", "Gradient-weighted class activation")
        yield Line(3, CONTAINS, "IMAGE", name, (made.sop_class_uid, made.sop_instance_uid))
    yield Line(3, CONTAINS, "CODE", dcm("111065", "Summary of Analyses"), _image_status(image))
    if prediction:
        for label, p in zip(bundle.labels, prediction.probabilities, strict=True):
            yield Line(3, CONTAINS, "CODE", triple(label.code), state(label, p))
    yield Line(3, CONTAINS, "TEXT", dcm("121106", "Comment"), f"Image {said}" if isinstance(said, str) else ANY)


def image_text(image: ImageResult, bundle: Bundle) -> object:
    """One image in words, or ANY where a character of them is not ASCII."""
    header = Header(image.source)
    numbers = f"series {header.get('SeriesNumber') or '-'}, instance {header.get('InstanceNumber') or '-'}"
    start = f"{header.get('SOPInstanceUID')} ({numbers}): "
    if image.prediction is None:
        return _ours(f"{start}NOT ANALYSED - {image.rejection.text if image.rejection else ''}")
    label = first_of(bundle, image.prediction)
    pairs = zip(bundle.labels, image.prediction.probabilities, strict=True)
    parts = (f"{each.name} {p:.3f} {state(each, p).meaning.lower()}" for each, p in pairs)
    return f"{start}{label.name.upper() if label else 'UNDETERMINED'} ({', '.join(parts)})"


def series_description(kind: str, bundle: Bundle) -> object:
    """Of at most 64 characters (VR LO)."""
    said = _ours(f"{kind} {bundle.name} {bundle.manifest.version} - research use only")
    return said[:64].strip() if isinstance(said, str) else said


def state(label: Label, probability: float) -> Triple:
    if probability >= label.present_at:
        return PRESENT
    return ABSENT if probability < label.absent_below else UNDETERMINED


def first_of(bundle: Bundle, prediction: Prediction) -> Label | None:
    """Of the labels that are present the most probable abnormal one, else the most probable; None: none is present."""
    pairs = zip(bundle.labels, prediction.probabilities, strict=True)
    present = [(label, p) for label, p in pairs if state(label, p) == PRESENT]
    told = [(label, p) for label, p in present if not label.normal] or present
    return max(told, key=lambda pair: pair[1])[0] if told else None


def triple(code: Code) -> Triple:
    return Triple(code.value, code.scheme, code.meaning)


def _status(images: Sequence[ImageResult], bundle: Bundle) -> Triple:
    analysed = [first_of(bundle, image.prediction) for image in images if image.prediction]
    if not analysed:
        return _NONE_SUCCEEDED
    return _RUN_STATUS[len(analysed) == len(images), any(first is None or not first.normal for first in analysed)]


def _image_status(image: ImageResult) -> Triple:
    if image.rejection is None:
        return dcm("111222", "Succeeded")
    failed = image.rejection.reason.outcome is Outcome.FAILED
    return dcm("111224", "Failed") if failed else dcm("111225", "Not Attempted")


def _procedure(ordered: Sequence[ImageResult]) -> Triple:
    """The lead's own code, as it is encoded, if it has a complete one."""
    lead = next((image for image in ordered if image.prediction), ordered[0])
    for item in Header(lead.source).items("ProcedureCodeSequence"):
        code = Triple(*(item.raw(k).decode("latin-1") for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")))
        if all(code):
            return code
    if all(image.rejection and image.rejection.reason in _NO_CHEST for image in ordered):
        return sct("363679005", "Imaging procedure")
    return sct("399208008", "Plain chest X-ray")


def _parameters(bundle: Bundle, prediction: Prediction | None) -> Iterator[object]:
    for label in bundle.labels:
        yield f"{label.name}: present at {label.present_at:g}, absent below {label.absent_below:g}"
    yield f"weights sha256 {bundle.manifest.files.get('model.onnx', 'unknown')}"
    yield f"bundle sha256 {bundle.digest}"
    if prediction:
        yield _ours(f"engine {prediction.engine}")


def _ours(text: str) -> object:
    """Words that every character set holds stand as they are."""
    return text if text.isascii() and not set(text) & {"\\", "~"} else ANY
