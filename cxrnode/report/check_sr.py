"""Rules for the Structured Report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom import Dataset

from cxrnode.dicom.identity import RESEARCH_USE
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.report import sr
from cxrnode.report.common import reading_order
from cxrnode.report.context import State
from cxrnode.report.source import Header
from cxrnode.types import ImageResult, Prediction
from engines.bundle import Code


def sr_findings(ds: Dataset, images: Sequence[ImageResult]) -> Iterator[str]:
    """Everything that is wrong with `ds` as the report on `images`."""
    root = _Node(ds)
    yield from _document_findings(ds, root)
    yield from _evidence_findings(ds, images)
    yield from _root_findings(root, images)
    groups = [g for measurements in root.all(sr.MEASUREMENTS) for g in measurements.all(sr.GROUP)]
    if len(groups) != len(images):
        yield f"{len(groups)} measurement groups for {len(images)} images"
    uids = [g.text(sr.TRACKING_UID) for g in groups]
    if len(set(uids)) != len(uids):
        yield "two measurement groups share a Tracking UID"
    for number, (group, image) in enumerate(zip(groups, reading_order(images), strict=False), 1):
        for finding in _group_findings(group, image):
            yield f"image {number}: {finding}"


def _document_findings(ds: Dataset, root: _Node) -> Iterator[str]:
    for keyword, expected in {"CompletionFlag": "COMPLETE", "VerificationFlag": "UNVERIFIED", "Modality": "SR"}.items():
        if ds.get(keyword) != expected:
            yield f"{keyword} is {ds.get(keyword)!r}, not {expected!r}"
    template = ds.get("ContentTemplateSequence") or [Dataset()]
    if template[0].get("TemplateIdentifier") != "1500" or root.name != _key(sr.TITLE):
        yield "the root is no TID 1500 Imaging Measurement Report"


def _evidence_findings(ds: Dataset, images: Sequence[ImageResult]) -> Iterator[str]:
    """Every image in Current Requested Procedure Evidence: viewers refuse a report without."""
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
    if len(found) != len(set(found)) or set(found) != expected:
        yield "CurrentRequestedProcedureEvidenceSequence does not hold exactly the images"


def _root_findings(root: _Node, images: Sequence[ImageResult]) -> Iterator[str]:
    if not all(root.code_of(sr.PROCEDURE_REPORTED)):
        yield "Procedure Reported is missing"
    if not is_valid_uid(root.text(sr.OBSERVER_UID)):
        yield "Device Observer UID is missing"
    if not _status_fits(root.code_of(sr.RUN_STATUS), images):
        yield "the run status does not fit the images"
    yield from _summary_findings(root.text(sr.SUMMARY), images)


def _status_fits(status: tuple[str, str], images: Sequence[ImageResult]) -> bool:
    analysed = sum(i.prediction is not None for i in images)
    some = {"111241", "111242"} if analysed == len(images) else {"111243", "111244"}
    return status[0] in (some if analysed else {"111245"})


def _summary_findings(summary: str, images: Sequence[ImageResult]) -> Iterator[str]:
    """Silence must never read as normal (design rule 5)."""
    if RESEARCH_USE not in summary:
        yield "the summary does not say that it is for research use only"
    analysed = sum(i.prediction is not None for i in images)
    if f"{analysed} of {len(images)} images analysed" not in summary:
        yield "the summary does not say how many images were analysed"
    lines = summary.splitlines()
    for number, image in enumerate(reading_order(images), 1):
        start = f"Image {number}: {Header(image.source).get('SOPInstanceUID')} "
        line = next((x for x in lines if x.startswith(start)), "")
        if not line:
            yield f"the summary does not mention image {number}"
        elif image.rejection is not None and sr.not_analysed_text(image.rejection) not in line:
            yield f"the summary does not say why image {number} was not analysed"


def _group_findings(group: _Node, image: ImageResult) -> Iterator[str]:
    if not group.text(sr.TRACKING_IDENTIFIER) or not is_valid_uid(group.text(sr.TRACKING_UID)):
        yield "Tracking Identifier or Tracking UID is missing"
    for name in (sr.ALGORITHM_NAME, sr.ALGORITHM_VERSION, sr.ALGORITHM_PARAMETERS, sr.ALGORITHM_MANUFACTURER):
        if not group.text(name):
            yield f"{name.meaning} is missing"
    source = Header(image.source)
    if _references(group) != [(source.get("SOPClassUID"), source.get("SOPInstanceUID"))]:
        yield "it does not reference its source image"
    if group.code_of(sr.IMAGE_STATUS) != _key(sr.image_status(image)):
        yield "its status does not fit its outcome"
    if image.rejection is not None:
        yield from _rejected_findings(group, sr.not_analysed_text(image.rejection))
    elif image.prediction is not None:
        yield from _prediction_findings(group, image.prediction)


def _rejected_findings(group: _Node, reason: str) -> Iterator[str]:
    if reason not in group.text(sr.COMMENT):
        yield "the reason why it was not analysed is missing"
    if group.all(sr.FINDING) or group.all(sr.PROBABILITY):
        yield "it was not analysed and still has a finding"


def _prediction_findings(group: _Node, prediction: Prediction) -> Iterator[str]:
    found = [_number(item) for item in group.all(sr.PROBABILITY)]
    if not all(0 <= p <= 1 for p in found):
        yield "a probability is outside 0..1"
    expected = prediction.probabilities
    if len(found) != len(expected) or any(abs(a - b) > 1e-6 for a, b in zip(found, expected, strict=False)):
        yield "the probabilities differ from the prediction's"
    yield from _verdict_findings(group, len(expected))


def _verdict_findings(group: _Node, labels: int) -> Iterator[str]:
    """Each label has its verdict, and the finding is one that is present (or undetermined where none is)."""
    verdicts = {node.name: node.code for node in group.every() if node.code in _STATES}
    verdicts.pop(_key(sr.FINDING), None)
    if len(verdicts) != labels:
        yield f"{len(verdicts)} verdicts for {labels} labels"
    present = {label for label, state in verdicts.items() if state == _key(State.PRESENT.value)}
    if group.code_of(sr.FINDING) not in (present or {_key(sr.UNDETERMINED)}):
        yield "the finding does not follow from the verdicts"


_STATES = {(s.value.value, s.value.scheme) for s in State}


class _Node:
    """A content item with its children by concept name: a report is searched often, and pydicom reads slowly."""

    __slots__ = ("_children", "code", "item", "name")

    def __init__(self, item: Dataset) -> None:
        self.item = item
        self.name = _code_in(item, "ConceptNameCodeSequence")
        self.code = _code_in(item, "ConceptCodeSequence")
        self._children: dict[tuple[str, str], list[_Node]] = {}
        for child in item.get("ContentSequence") or []:
            node = _Node(child)
            self._children.setdefault(node.name, []).append(node)

    def all(self, name: Code) -> list[_Node]:
        return self._children.get(_key(name), [])

    def every(self) -> Iterator[_Node]:
        for nodes in self._children.values():
            yield from nodes

    def text(self, name: Code) -> str:
        """Text or UID of the first child called `name`, or ""."""
        return next((str(n.item.get("TextValue") or n.item.get("UID") or "") for n in self.all(name)), "")

    def code_of(self, name: Code) -> tuple[str, str]:
        return next((n.code for n in self.all(name)), _NO_CODE)


_NO_CODE = ("", "")


def _key(code: Code) -> tuple[str, str]:
    return code.value, code.scheme


def _code_in(item: Dataset, keyword: str) -> tuple[str, str]:
    """Value and scheme of the first code in the sequence `keyword`; two empty texts where there is none."""
    for found in item.get(keyword) or []:
        value = found.get("CodeValue") or found.get("LongCodeValue") or ""
        return str(value), str(found.get("CodingSchemeDesignator") or "")
    return _NO_CODE


def _number(node: _Node) -> float:
    measured = node.item.get("MeasuredValueSequence") or [Dataset()]
    value = measured[0].get("NumericValue")
    return float("nan") if value is None else float(value)


def _references(group: _Node) -> list[tuple[str, str]]:
    return [
        (str(ref.get("ReferencedSOPClassUID")), str(ref.get("ReferencedSOPInstanceUID")))
        for node in group.every()
        for ref in node.item.get("ReferencedSOPSequence") or []
    ]
