"""Rules for the Grad-CAM capture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom import Dataset

from cxrnode.dicom.orientation import lie_of
from cxrnode.report.check_content import dcm, first_of, series_description
from cxrnode.report.check_tree import codes_of, fits
from cxrnode.report.source import Header
from cxrnode.types import ImageResult
from engines.bundle import Bundle

_FIXED = {
    "ConversionType": "WSD", "BurnedInAnnotation": "NO", "RecognizableVisualFeatures": "NO",
    "BodyPartExamined": "CHEST", "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
    "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "Modality": "OT", "SeriesNumber": 9802,
}  # fmt: skip
_RESEARCH_USE = "Research use only. Not for diagnostic use."
_GRAD_CAM = dcm("130403", "Gradient-weighted class activation")  # CID 217
_PURPOSE = dcm("121322", "Source image for image processing operation")  # CID 7202


def capture_findings(ds: Dataset, images: Sequence[ImageResult], bundle: Bundle) -> Iterator[str]:
    """Everything that is wrong with `ds` as the capture of the one image in `images`."""
    if len(images) != 1 or images[0].prediction is None:
        yield "a capture belongs to one analysed image"
        return
    for keyword, expected in _FIXED.items():
        if ds.get(keyword) != expected:
            yield f"{keyword} is {ds.get(keyword)!r}, not {expected!r}"
    if list(ds.get("ImageType") or []) != ["DERIVED", "SECONDARY"]:
        yield "ImageType is not DERIVED\\SECONDARY"
    derivation = str(ds.get("DerivationDescription"))
    if not (derivation.startswith(f"Grad-CAM of {bundle.name} ") and derivation.endswith(f". {_RESEARCH_USE}")):
        yield "DerivationDescription does not say that it is for research use only"
    if codes_of(ds, "DerivationCodeSequence") != [_GRAD_CAM]:
        yield "DerivationCodeSequence does not say what it is"
    if not fits(str(ds.get("SeriesDescription")), series_description("AI Grad-CAM", bundle)):
        yield "SeriesDescription does not say what it is, and that it is for research use only"
    label = first_of(bundle, images[0].prediction)
    if ds.get("ImageComments") != f"{label.name if label else 'undetermined'}. {_RESEARCH_USE}":
        yield "ImageComments does not say what was found, and that it is for research use only"
    source = Header(images[0].source)
    if ds.get("InstanceNumber") != int(source.get("InstanceNumber") or 1):
        yield "InstanceNumber is not the source's"
    upright = ["L", "F"] if lie_of(images[0].source) else []
    if "PatientOrientation" not in ds or list(ds.get("PatientOrientation") or []) != upright:
        yield "PatientOrientation is not that of the upright picture"
    yield from _source_findings(ds, source)
    yield from _pixel_findings(ds)


def _source_findings(ds: Dataset, source: Header) -> Iterator[str]:
    expected = (source.get("SOPClassUID"), source.get("SOPInstanceUID"))
    found = [
        (*_reference(ref), codes_of(ref, "PurposeOfReferenceCodeSequence"))
        for ref in ds.get("SourceImageSequence") or []
    ]
    if found != [(*expected, [_PURPOSE])]:
        yield "SourceImageSequence does not name the source image and its purpose"
    series = [
        (s.get("SeriesInstanceUID"), *_reference(ref))
        for s in ds.get("ReferencedSeriesSequence") or []
        for ref in s.get("ReferencedInstanceSequence") or []
    ]
    if series != [(source.get("SeriesInstanceUID"), *expected)]:
        yield "ReferencedSeriesSequence does not name the source image and its series"


def _reference(item: Dataset) -> tuple[object, object]:
    return item.get("ReferencedSOPClassUID"), item.get("ReferencedSOPInstanceUID")


def _pixel_findings(ds: Dataset) -> Iterator[str]:
    pixels = ds.get("PixelData") or b""
    size = (ds.get("Rows") or 0) * (ds.get("Columns") or 0) * 3
    if size == 0 or len(pixels) != size + size % 2:
        yield f"PixelData holds {len(pixels)} bytes, Rows and Columns ask for {size + size % 2}"
    elif pixels.count(pixels[:1]) == len(pixels):
        yield "the picture is blank"
