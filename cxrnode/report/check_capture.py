"""Rules for the Grad-CAM capture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom import Dataset

from cxrnode.dicom.identity import RESEARCH_USE
from cxrnode.report.source import Header
from cxrnode.types import ImageResult

_FIXED = {
    "ConversionType": "WSD", "BurnedInAnnotation": "NO", "RecognizableVisualFeatures": "NO",
    "BodyPartExamined": "CHEST", "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
    "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
}  # fmt: skip


def capture_findings(ds: Dataset, images: Sequence[ImageResult]) -> Iterator[str]:
    """Everything that is wrong with `ds` as the capture of the one image in `images`."""
    if len(images) != 1 or images[0].prediction is None:
        yield "a capture belongs to one analysed image"
        return
    for keyword, expected in _FIXED.items():
        if ds.get(keyword) != expected:
            yield f"{keyword} is {ds.get(keyword)!r}, not {expected!r}"
    if list(ds.get("ImageType") or []) != ["DERIVED", "SECONDARY"]:
        yield "ImageType is not DERIVED\\SECONDARY"
    if RESEARCH_USE not in str(ds.get("DerivationDescription")):
        yield "DerivationDescription does not say that it is for research use only"
    yield from _source_findings(ds, Header(images[0].source))
    yield from _pixel_findings(ds)


def _source_findings(ds: Dataset, source: Header) -> Iterator[str]:
    expected = (source.get("SOPClassUID"), source.get("SOPInstanceUID"), "121322")
    found = [
        (ref.get("ReferencedSOPClassUID"), ref.get("ReferencedSOPInstanceUID"), purpose.get("CodeValue"))
        for ref in ds.get("SourceImageSequence") or []
        for purpose in ref.get("PurposeOfReferenceCodeSequence") or [Dataset()]
    ]
    if found != [expected]:
        yield "SourceImageSequence does not name the source image and its purpose"


def _pixel_findings(ds: Dataset) -> Iterator[str]:
    pixels = ds.get("PixelData") or b""
    size = (ds.get("Rows") or 0) * (ds.get("Columns") or 0) * 3
    if size == 0 or len(pixels) != size + size % 2:
        yield f"PixelData holds {len(pixels)} bytes, Rows and Columns ask for {size + size % 2}"
    elif pixels.count(pixels[:1]) == len(pixels):
        yield "the picture is blank"
