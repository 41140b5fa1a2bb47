"""A source that says one value wherever its results repeat it, and those results, made as the stages make them."""

from __future__ import annotations

from pathlib import Path

from pydicom.datadict import tag_for_keyword

from cxrnode.dicom.header import instance_header
from cxrnode.dicom.read import read_instance
from cxrnode.types import Prediction, StoredImage, Study
from cxrnode.workers import Output, make_capture, make_sr
from tests.support.character_sets import Case
from tests.support.dirty import Element, dirty_file, item, sequence
from tests.support.encoded import EXPLICIT
from tests.support.make_dicom import chest
from tests.support.results import AT, POSITIVE, cam, context, preview

# every element of a source whose text its results repeat: VR, and where in the report (PS3.3 table C.17-2) if elsewhere
TEXT = {
    "AccessionNumber": "SH", "ReferringPhysicianName": "PN", "StudyDescription": "LO", "PatientName": "PN",
    "PatientID": "LO", "IssuerOfPatientID": "LO", "PatientSex": "CS", "PatientBirthDate": "DA", "StudyID": "SH",
    "StudyDate": "DA", "StudyTime": "TM", "PatientAge": "AS", "PatientSize": "DS", "PatientWeight": "DS",
}  # fmt: skip
IN_SEQUENCES = {
    "OtherPatientIDsSequence": {"PatientID": "LO", "IssuerOfPatientID": "LO", "TypeOfPatientID": "CS"},
    "IssuerOfPatientIDQualifiersSequence": {"UniversalEntityID": "UT", "UniversalEntityIDType": "CS"},
    "IssuerOfAccessionNumberSequence": {"LocalNamespaceEntityID": "UT", "UniversalEntityID": "UT"},
}
ORDER = {
    "AccessionNumber": "SH", "PlacerOrderNumberImagingServiceRequest": "LO",
    "FillerOrderNumberImagingServiceRequest": "LO", "RequestedProcedureID": "SH",
    "RequestedProcedureDescription": "LO",
}  # fmt: skip
PROCEDURE = {"CodeValue": "SH", "CodingSchemeDesignator": "SH", "CodeMeaning": "LO"}
SEQUENCES = frozenset(
    tag_for_keyword(k) or 0 for k in (*IN_SEQUENCES, "RequestAttributesSequence", "ProcedureCodeSequence")
)


def source(case: Case, syntax: str = EXPLICIT) -> bytes:
    """A file all of whose copied text is `case`, at its top and in items."""

    def one(of: dict[str, str]) -> Element:
        return "SQ", sequence(syntax, item(syntax, {k: (vr, case.value) for k, vr in of.items()}))

    elements: dict[str, Element] = {k: (vr, case.value) for k, vr in TEXT.items()}
    elements |= {k: one(of) for k, of in IN_SEQUENCES.items()}
    elements |= {"RequestAttributesSequence": one(ORDER), "ProcedureCodeSequence": one(PROCEDURE)}
    if case.terms:
        elements["SpecificCharacterSet"] = ("CS", case.terms)
    return dirty_file(elements, syntax=syntax, source=chest(64, 56, overrides={"SpecificCharacterSet": None}))


def results(folder: Path, file: bytes) -> tuple[bytes, bytes]:
    """The report and the capture of a file, as the stages make them: read, kept, made, checked and written."""
    kept = instance_header(read_instance(file)).kept
    prediction = Prediction(probabilities=POSITIVE, class_index=0, cam_max=1.5, engine="cpu")
    image = StoredImage(kept_header=kept, pixel_digest="a1" * 32, prediction=prediction)
    study = Study(
        study_instance_uid="1", job_ids=(1,), images=(image,), last_received_at=AT.timestamp(), stat=False, earlier=()
    )
    output = Output(root=folder)
    (report,) = make_sr(output, context(), study)
    assert report.sr is not None, report.held_back
    capture = make_capture(output, context(), image, preview(64, 56), cam())
    return (folder / report.sr.path).read_bytes(), (folder / capture.path).read_bytes()
