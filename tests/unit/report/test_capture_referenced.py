"""A report shows the captures that exist, each with its image and in the evidence, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from cxrnode.dicom.header import header_to_bytes
from cxrnode.errors import ResultError
from cxrnode.report.capture import build_capture
from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from cxrnode.types import ImageResult, Report, ResultObject, StoredImage, Study
from cxrnode.workers import Output, make_capture, make_sr
from engines.bundle import Code
from tests.support.bundles import make_bundle
from tests.support.results import SCENARIOS, analysed, cam, check, context, header, preview, rejected

HERE = context()
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
STUDY = [
    analysed(header(uids=("2.25.77", "2.25.78", "2.25.791"))),
    rejected(header(uids=("2.25.77", "2.25.78", "2.25.792"))),
    analysed(header(uids=("2.25.77", "2.25.79", "2.25.793")), digest="c3"),
]


def stored(image: ImageResult) -> StoredImage:
    kept = header_to_bytes(image.source)
    return StoredImage(
        kept_header=kept, pixel_digest=image.pixel_digest, prediction=image.prediction, rejection=image.rejection
    )


def captures(output: Output, images: Sequence[ImageResult]) -> list[ResultObject]:
    return [make_capture(output, HERE, stored(i), preview(), cam()) for i in images if i.prediction]


def made(tmp_path: Path, images: Sequence[ImageResult], there: Sequence[ResultObject]) -> tuple[Report, ...]:
    study = Study(
        study_instance_uid="2.25.77", job_ids=tuple(range(len(images))), images=tuple(map(stored, images)),
        last_received_at=0.0, stat=False, earlier=(), captures=tuple(there),
    )  # fmt: skip
    return make_sr(Output(root=tmp_path), HERE, study)


def shown(ds: Dataset) -> list[tuple[str, str]]:
    """(image, capture) of each measurement group that shows one."""
    pairs = []
    for group in ds.ContentSequence[-1].ContentSequence:
        references = [i.ReferencedSOPSequence[0] for i in group.ContentSequence if i.ValueType == "IMAGE"]
        assert {r.ReferencedSOPClassUID for r in references[1:]} <= {SECONDARY_CAPTURE}
        pairs += [(references[0].ReferencedSOPInstanceUID, r.ReferencedSOPInstanceUID) for r in references[1:]]
    return pairs


def evidence(ds: Dataset) -> dict[str, list[str]]:
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    return {
        s.SeriesInstanceUID: [r.ReferencedSOPInstanceUID for r in s.ReferencedSOPSequence]
        for s in study.ReferencedSeriesSequence
    }


def test_every_capture_is_shown_with_its_image(tmp_path: Path) -> None:
    first, third = captures(Output(root=tmp_path), STUDY)
    (report,) = made(tmp_path, STUDY, [third, first])
    assert report.sr
    ds = dcmread(tmp_path / report.sr.path)
    uids = [c.sop_instance_uid for c in (first, third)]
    assert shown(ds) == list(zip(("2.25.791", "2.25.793"), uids, strict=True))
    assert evidence(ds) == {
        "2.25.78": ["2.25.791", "2.25.792"], "2.25.79": ["2.25.793"], first.series_instance_uid: uids,
    }  # fmt: skip
    assert [dcmread(tmp_path / c.path).SOPInstanceUID for c in (first, third)] == uids
    assert report.sr.sop_instance_uid == HERE.sr_uid(STUDY)  # as it always was


def test_what_is_not_there_is_not_shown(tmp_path: Path) -> None:
    """Not made, of another model, or of a cxrnode that kept no series of it."""
    first, third = captures(Output(root=tmp_path), STUDY)
    other = make_capture(
        Output(root=tmp_path), context(make_bundle(version="2")), stored(STUDY[0]), preview(), cam()
    )  # fmt: skip
    (report,) = made(tmp_path, STUDY, [other, replace(third, series_instance_uid="")])
    assert report.sr
    assert shown(dcmread(tmp_path / report.sr.path)) == []
    (report,) = made(tmp_path, STUDY, [first, other])
    assert report.sr
    assert shown(dcmread(tmp_path / report.sr.path)) == [("2.25.791", first.sop_instance_uid)]


def test_a_report_shows_its_own_patient_s_captures(tmp_path: Path) -> None:
    other = analysed(
        header(uids=("2.25.77", "2.25.79", "2.25.794"), overrides={"PatientID": "OTHER"}), digest="d4"
    )  # fmt: skip
    images = [STUDY[0], other]
    there = captures(Output(root=tmp_path), images)
    for report, image, capture in zip(made(tmp_path, images, there), ("791", "794"), there, strict=True):
        assert report.sr
        assert shown(dcmread(tmp_path / report.sr.path)) == [(f"2.25.{image}", capture.sop_instance_uid)]


def test_the_checker_wants_exactly_these_captures() -> None:
    images = SCENARIOS["captured"]()
    without = [replace(image, capture=None) for image in images]
    check(decode(encode(build_sr(images, HERE))), images)
    for built, told in ((images, without), (without, images)):
        with pytest.raises(ResultError, match=r"does not hold exactly the images and their captures.*image 1: "):
            check(decode(encode(build_sr(built, HERE))), told)


def test_images_of_the_same_pixels_are_told_apart_by_text() -> None:
    images = [analysed(header(uids=("2.25.77", "2.25.78", f"2.25.79{n}"))) for n in range(3)]
    groups = build_sr(images, HERE).ContentSequence[-1].ContentSequence
    texts = [str(group.ContentSequence[0].TextValue) for group in groups]
    assert len(set(texts)) == 3
    assert texts == [f"cxr3-test {group.ContentSequence[1].UID[-16:]}" for group in groups]
    ds = build_sr(images, HERE)
    ds.ContentSequence[-1].ContentSequence[1].ContentSequence[0].TextValue = texts[0]
    with pytest.raises(ResultError, match=r"image 2: Tracking Identifier.*share a Tracking Identifier"):
        check(ds, images)


def test_what_the_model_is_to_a_result_may_be_a_site_s_own_code() -> None:
    purpose = Code(value="Newcode1", scheme="99IHE", meaning="Processing Algorithm")
    there, images = replace(HERE, purpose=purpose), [analysed()]
    for ds in (build_sr(images, there), build_capture(images[0], preview(), cam(), there)):
        (code,) = ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence
        assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == tuple(purpose.model_dump().values())
        check(ds, images, purpose=purpose)
        with pytest.raises(ResultError, match="does not say what the model did"):
            check(ds, images)
    with pytest.raises(ResultError, match="does not say what the model did"):
        check(build_sr(images, HERE), images, purpose=purpose)
