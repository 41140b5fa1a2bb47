"""Which elements of an object the node needs, by keyword; every other one is passed over and never built.

What is to be read of a source is added here first.
"""

from __future__ import annotations

from pydicom.datadict import tag_for_keyword

# patient, study, series and image references (PS3.3 C.7.1.1, C.7.2.1, C.7.3.1, C.12.1, C.7.6.1) and the request
KEPT = frozenset({
    "SpecificCharacterSet", "TimezoneOffsetFromUTC",
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate",
    "PatientSex", "OtherPatientIDsSequence", "PatientAge", "PatientSize", "PatientWeight", "PatientComments",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "ProcedureCodeSequence", "ReferencedStudySequence",
    "RequestAttributesSequence", "ReferencedPerformedProcedureStepSequence", "InstitutionName",
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "BodyPartExamined",
    "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence", "PatientOrientation", "ImageOrientationPatient",
    "Laterality",
    "FrameOfReferenceUID", "PositionReferenceIndicator",
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "AcquisitionDate", "AcquisitionTime", "ContentDate",
    "ContentTime", "Rows", "Columns", "PhotometricInterpretation", "Manufacturer", "ManufacturerModelName",
    "NumberOfFrames", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
})  # fmt: skip
# what the gate asks besides (see `select`)
GATE = frozenset({
    "ImageType", "ConversionType", "ProtocolName", "PerformedProcedureStepDescription", "RequestedProcedureDescription",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "StrainDescription", "StrainCodeSequence",
    "PatientSexNeutered", "AnatomicalOrientationType", "ResponsiblePersonRole",
    "QualityControlImage", "QualityControlSubject", "CalibrationImage",
})  # fmt: skip
# look-up tables, the only large ones
TABLES = frozenset({
    "ModalityLUTSequence", "VOILUTSequence",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
})  # fmt: skip
# what the picture takes besides (see `codecs`, `tone`, `pixels`)
PICTURE = TABLES | {
    "SamplesPerPixel",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PresentationLUTShape",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "FieldOfViewRotation",
    "FieldOfViewHorizontalFlip",
}


def tags(*keywords: str) -> frozenset[int]:
    """The tags of elements. Raises KeyError for what is no keyword (PS3.6 section 6)."""
    found = {keyword: tag_for_keyword(keyword) for keyword in keywords}
    if unknown := [keyword for keyword, tag in found.items() if tag is None]:
        raise KeyError(unknown[0])
    return frozenset(tag for tag in found.values() if tag is not None)


KEPT_TAGS = tags(*KEPT)
TABLE_TAGS = tags(*TABLES)
TAGS = KEPT_TAGS | tags(*GATE, *PICTURE)
