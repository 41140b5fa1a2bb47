"""Rules for the Structured Report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom import Dataset

from cxrnode.report.check_content import (
    OBSERVER_UID,
    SUMMARY,
    TRACKING_IDENTIFIER,
    TRACKING_UID,
    Line,
    group,
    head,
    image_text,
    in_reading_order,
    series_description,
)
from cxrnode.report.check_tree import differences, fits, lines_of
from cxrnode.report.source import Header
from cxrnode.types import ImageResult
from engines.bundle import Bundle

_FIXED = {
    "CompletionFlag": "COMPLETE", "VerificationFlag": "UNVERIFIED", "Modality": "SR", "SeriesNumber": 9801,
    "InstanceNumber": 1,
}  # fmt: skip
_GROUP_DEPTH = 2


def sr_findings(ds: Dataset, images: Sequence[ImageResult], bundle: Bundle) -> Iterator[str]:
    """Everything that is wrong with `ds` as the report on `images`."""
    for keyword, expected in _FIXED.items():
        if ds.get(keyword) != expected:
            yield f"{keyword} is {ds.get(keyword)!r}, not {expected!r}"
    if not fits(str(ds.get("SeriesDescription")), series_description("AI report", bundle)):
        yield "SeriesDescription does not say what it is, and that it is for research use only"
    yield from _evidence_findings(ds, images)
    found = list(lines_of(ds))
    yield from _tree_findings(found, in_reading_order(images), bundle)
    yield from _summary_findings(_first(found, SUMMARY), in_reading_order(images), bundle)
    equipment = (ds.get("ContributingEquipmentSequence") or [Dataset()])[0]
    if _first(found, OBSERVER_UID) != equipment.get("DeviceUID"):
        yield "Device Observer UID is not the Device UID of the contributing equipment"
    for keyword in ("PerformedProcedureCodeSequence", "ReferencedPerformedProcedureStepSequence"):
        if keyword not in ds or len(ds[keyword].value):
            yield f"{keyword} (type 2) is not empty"


def _evidence_findings(ds: Dataset, images: Sequence[ImageResult]) -> Iterator[str]:
    """Every image, and its capture, in Current Requested Procedure Evidence: viewers refuse a report without."""
    if "PertinentOtherEvidenceSequence" in ds:
        yield "evidence in PertinentOtherEvidenceSequence"
    found = [
        (study.get("StudyInstanceUID"), series.get("SeriesInstanceUID"), ref.get("ReferencedSOPInstanceUID"),
         ref.get("ReferencedSOPClassUID"))
        for study in ds.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.get("ReferencedSeriesSequence") or []
        for ref in series.get("ReferencedSOPSequence") or []
    ]  # fmt: skip
    keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    expected = {tuple(Header(i.source).get(k) for k in keys) for i in images}
    expected |= {
        (Header(i.source).get("StudyInstanceUID"), c.series_instance_uid, c.sop_instance_uid, c.sop_class_uid)
        for i in images
        if (c := i.capture)
    }
    if len(found) != len(set(found)) or set(found) != expected:
        yield "CurrentRequestedProcedureEvidenceSequence does not hold exactly the images and their captures"


def _tree_findings(found: Sequence[Line], ordered: Sequence[ImageResult], bundle: Bundle) -> Iterator[str]:
    """The report's head, then each measurement group against its image."""
    top, *groups = _split(found)
    yield from differences(top, list(head(ordered, bundle)))
    if len(groups) != len(ordered):
        yield f"{len(groups)} measurement groups for {len(ordered)} images"
    for number, (lines, image) in enumerate(zip(groups, ordered, strict=False), 1):
        for finding in differences(lines, list(group(image, bundle, _first(lines, TRACKING_UID)))):
            yield f"image {number}: {finding}"
    for name, what in ((TRACKING_UID, "Tracking UID"), (TRACKING_IDENTIFIER, "Tracking Identifier")):
        values = [line.value for line in found if line.name == name]
        if len(set(values)) != len(values):
            yield f"two measurement groups share a {what}"


def _split(found: Sequence[Line]) -> list[list[Line]]:
    parts: list[list[Line]] = [[]]
    for line in found:
        if line.depth == _GROUP_DEPTH:
            parts.append([])
        parts[-1].append(line)
    return parts


def _summary_findings(summary: object, ordered: Sequence[ImageResult], bundle: Bundle) -> Iterator[str]:
    """Silence must never read as normal (design rule 5)."""
    lines = str(summary).splitlines()
    if lines[:1] != ["Research use only. Not for diagnostic use."]:
        yield "the summary does not say that it is for research use only"
    analysed = sum(i.prediction is not None for i in ordered)
    if not any(line.startswith(f"{analysed} of {len(ordered)} images analysed by {bundle.name} ") for line in lines):
        yield "the summary does not say how many images were analysed"
    if missing := len(ordered) - analysed:
        warning = f"{missing} NOT ANALYSED: nothing is said about them, they must not be read as normal."
        if warning not in lines:
            yield "the summary does not say that silence is not normal"
    for number, image in enumerate(ordered, 1):
        start, said = f"Image {number}: ", image_text(image, bundle)
        line = next((x for x in lines if x.startswith(f"{start}{Header(image.source).get('SOPInstanceUID')} ")), "")
        if not line:
            yield f"the summary does not mention image {number}"
        elif isinstance(said, str) and line != start + said:
            yield f"the summary does not say what came of image {number}"
        elif image.rejection is not None and image.rejection.reason.text not in line:
            yield f"the summary does not say why image {number} was not analysed"


def _first(found: Sequence[Line], name: object) -> object:
    return next((line.value for line in found if line.name == name), "")
