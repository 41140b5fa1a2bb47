"""The Grad-CAM capture: a Secondary Capture Image (PS3.3 A.8.1), the courtesy copy beside the report."""

from __future__ import annotations

from pydicom import Dataset

from cxrnode.dicom.identity import RESEARCH_USE
from cxrnode.dicom.orientation import Lie, lie_of
from cxrnode.errors import ResultError
from cxrnode.report.common import check_images, new_object, set_frame_of_reference
from cxrnode.report.content import concept, dcm, sop_reference
from cxrnode.report.context import DEFAULT_LONG_SIDE, ReportContext, finding_word
from cxrnode.report.overlay import draw_overlay
from cxrnode.report.source import Header, ascii_text
from cxrnode.types import ByteArray, FloatArray, ImageResult, Kind

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
GRAD_CAM = dcm("130403", "Gradient-weighted class activation")
SOURCE_FOR_PROCESSING = dcm("121322", "Source image for image processing operation")


def build_capture(
    image: ImageResult,
    preview: ByteArray,
    cam: FloatArray,
    context: ReportContext,
    *,
    long_side: int = DEFAULT_LONG_SIDE,
) -> Dataset:
    """The capture of one analysed image, without file meta (see `encode`).

    preview: uint8 [h, w], cam: raw float32 [ch, cw]: see `draw_overlay`. Raises ResultError where the image was not
    analysed, lacks a UID or has an identifier that cannot be copied; never for any other dirt in a header.
    """
    check_images([image])
    if image.prediction is None:
        raise ResultError("an image that was not analysed has no capture")
    source = Header(image.source)
    ds = new_object(
        context, source, [image], kind=Kind.CAPTURE, sop_class_uid=SECONDARY_CAPTURE,
        sop_instance_uid=context.capture_uid(image, long_side),
    )  # fmt: skip
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.BurnedInAnnotation = "NO"
    ds.RecognizableVisualFeatures = "NO"
    ds.BodyPartExamined = "CHEST"
    lie = lie_of(image.source)
    ds.PatientOrientation = "" if lie is None else ["L", "F"]  # the picture is upright; PS3.3 C.7.6.1.1.1, type 2C
    ds.InstanceNumber = int(source.get("InstanceNumber") or 1)
    ds.ImageComments = ascii_text(f"{finding_word(context.bundle, image.prediction)}. {RESEARCH_USE}")
    set_frame_of_reference(ds, [image])
    _set_lossy(ds, source)
    _set_derivation(ds, source, context, lie)
    _set_pixels(ds, draw_overlay(preview, cam, image.prediction, context, long_side=long_side))
    return ds


def _set_lossy(ds: Dataset, source: Header) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5): the capture of a lossy source says so, though it adds no loss."""
    if source.get("LossyImageCompression") == "01":
        ds.LossyImageCompression = "01"
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            value = source.get(keyword)
            if value:
                setattr(ds, keyword, value)


def _set_derivation(ds: Dataset, source: Header, context: ReportContext, lie: Lie | None) -> None:
    """General Reference module (PS3.3 C.12.4) and Common Instance Reference (C.12.2)."""
    reference = sop_reference(source.get("SOPClassUID"), source.get("SOPInstanceUID"))
    reference.PurposeOfReferenceCodeSequence = [concept(SOURCE_FOR_PROCESSING)]
    ds.SourceImageSequence = [reference]
    turned = "" if lie is None or lie.is_upright else f", turned upright from {lie.rows}, {lie.columns}"
    ds.DerivationDescription = (
        f"Grad-CAM of {ascii_text(context.model)} over the radiograph, windowed and resized{turned}. {RESEARCH_USE}"
    )[:1024]
    ds.DerivationCodeSequence = [concept(GRAD_CAM)]
    series = Dataset()
    series.SeriesInstanceUID = source.get("SeriesInstanceUID")
    series.ReferencedInstanceSequence = [sop_reference(source.get("SOPClassUID"), source.get("SOPInstanceUID"))]
    ds.ReferencedSeriesSequence = [series]


def _set_pixels(ds: Dataset, picture: ByteArray) -> None:
    """Image Pixel module (PS3.3 C.7.6.3): colour-by-pixel RGB, padded to an even length (PS3.5 section 8.1.1)."""
    ds.Rows, ds.Columns = picture.shape[:2]
    ds.SamplesPerPixel = 3
    ds.PhotometricInterpretation = "RGB"
    ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    pixels = picture.tobytes()
    ds.add_new("PixelData", "OB", pixels + b"\x00" * (len(pixels) % 2))
