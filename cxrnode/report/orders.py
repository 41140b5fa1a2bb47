"""The orders that a report answers: Referenced Request Sequence (PS3.3 table C.17-2), by which a RIS can close them."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom import Dataset

from cxrnode.dicom.verbatim import CHARACTER_SET, Encoded
from cxrnode.report.source import Header
from cxrnode.types import ImageResult

# type 2, and type 3
_ORDER = (
    "AccessionNumber", "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID", "RequestedProcedureDescription",
)  # fmt: skip
_ORDER_TYPE_3 = (
    "SpecificCharacterSet", "IssuerOfAccessionNumberSequence", "OrderPlacerIdentifierSequence",
    "OrderFillerIdentifierSequence",
)  # fmt: skip
_ACCESSION = ("AccessionNumber", "IssuerOfAccessionNumberSequence")


def requests(images: Sequence[ImageResult], lead: Header) -> list[Dataset]:
    """Every order that one of the images names, once; and where the images' accession numbers differ, each of them.

    lead: the header under whose character set they will stand. Raises ResultError for what cannot be copied whole.
    """
    sources = [Header(image.source) for image in images]
    found: list[Dataset] = []
    for source in sources:
        for order in source.items("RequestAttributesSequence"):
            _add(found, _readable(_request(order, source), source, lead))
    if len({source.raw("AccessionNumber") for source in sources} - {b""}) > 1:
        told = {Header(request).raw("AccessionNumber") for request in found}
        for source in sources:
            if source.raw("AccessionNumber") not in {*told, b""}:
                _add(found, _readable(_request(Header(Dataset()), source), source, lead))
    return found


def _add(found: list[Dataset], request: Dataset) -> None:
    if request not in found:
        found.append(request)


def _request(order: Header, source: Header) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = order.get("StudyInstanceUID") or source.get("StudyInstanceUID")
    item.ReferencedStudySequence = []
    order.copy_into(item, *_ORDER, empty=True)
    order.copy_into(item, *_ORDER_TYPE_3)
    if not order.raw("AccessionNumber"):  # then it is the study's
        study = Dataset()
        source.copy_into(study, *_ACCESSION)
        if not order.raw("SpecificCharacterSet") or _is_plain(study):
            item.update(study)
    item.RequestedProcedureCodeSequence = []
    return item


def _readable(request: Dataset, source: Header, lead: Header) -> Dataset:
    """With the character set of its own image, where that is another one and counts."""
    foreign = source.raw("SpecificCharacterSet") != lead.raw("SpecificCharacterSet")
    if foreign and "SpecificCharacterSet" not in request and not _is_plain(request):
        request[CHARACTER_SET] = Encoded(CHARACTER_SET, "CS", source.raw("SpecificCharacterSet"))
    return request


def _is_plain(item: Dataset) -> bool:
    """Every character set reads it alike."""
    for element in item:
        if element.VR == "SQ":
            if not all(_is_plain(nested) for nested in element.value):
                return False
        elif isinstance(element, Encoded) and not (element.value.isascii() and b"\x1b" not in element.value):
            return False
    return True
