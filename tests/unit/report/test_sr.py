"""The Structured Report, read by hand and by highdicom."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import cast

import highdicom
import pytest
from highdicom.sr import MeasurementReport
from pydicom import Dataset
from pydicom.sr.codedict import codes

from cxrnode.dicom.text import text_of
from cxrnode.errors import ResultError
from cxrnode.report.capture import build_capture
from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from cxrnode.types import ImageResult, Reason
from tests.support.bundles import make_bundle, private_labels
from tests.support.results import (
    LATE_AT,
    NORMAL,
    POSITIVE,
    SCENARIOS,
    UNDETERMINED,
    analysed,
    cam,
    check,
    context,
    header,
    preview,
    rejected,
)


def read(images: list[ImageResult]) -> Dataset:
    return decode(encode(build_sr(images, context())))


def named(items: Dataset, meaning: str) -> list[Dataset]:
    return [i for i in items.ContentSequence if i.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def groups(ds: Dataset) -> list[Dataset]:
    return named(named(ds, "Imaging Measurements")[0], "Measurement Group")


def summary(ds: Dataset) -> str:
    return str(named(ds, "Summary")[0].TextValue)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_report_passes_the_checker_and_survives_its_file(name: str) -> None:
    images = SCENARIOS[name]()
    ds = build_sr(images, context())
    check(ds, images)
    data = encode(ds)
    assert encode(build_sr(images, context())) == data
    check(decode(data), images)


@pytest.mark.parametrize("name", ["positive", "mixed", "shared_uid", "lateral"])
def test_highdicom_reads_the_report(name: str) -> None:
    """An independent implementation of TID 1500 finds the groups, their images and their measurements."""
    images = SCENARIOS[name]()
    report = highdicom.sr.Comprehensive3DSR.from_dataset(read(images))
    found = cast(MeasurementReport, report.content).get_image_measurement_groups()
    assert len(found) == len(images)
    for group in found:
        assert group.tracking_uid
        if group.finding_type is not None:
            assert group.finding_sites[0].value == codes.SCT.Lung
            assert sum(m.value for m in group.get_measurements()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("probabilities", "finding", "status"),
    [
        (POSITIVE, "Suspected COVID-19", "111242"),
        (NORMAL, "Normal", "111241"),
        (UNDETERMINED, "Undetermined", "111242"),
        ((0.5, 0.0, 0.5), "Suspected COVID-19", "111242"),  # both present: the abnormal one is told first
    ],
)
def test_the_finding_follows_the_thresholds(probabilities: tuple[float, ...], finding: str, status: str) -> None:
    ds = read([analysed(probabilities=probabilities)])
    (group,) = groups(ds)
    assert named(group, "Finding")[0].ConceptCodeSequence[0].CodeMeaning == finding
    (run,) = named(ds, "CAD Processing and Findings Summary")
    assert run.ConceptCodeSequence[0].CodeValue == status


def test_a_verdict_for_each_label() -> None:
    (group,) = groups(read([analysed(probabilities=(0.6, 0.3, 0.1))]))
    labels = ("Suspected COVID-19", "Viral pneumonia", "Normal")
    verdicts = [named(group, n)[0].ConceptCodeSequence[0].CodeMeaning for n in labels]
    assert verdicts == ["Present", "Undetermined", "Absent"]


def test_silence_never_reads_as_normal() -> None:
    images = SCENARIOS["mixed"]()
    ds = read(images)
    assert "1 of 3 images analysed" in summary(ds)
    assert "2 NOT ANALYSED" in summary(ds)
    assert "not a frontal view: ViewPosition=LL" in summary(ds)
    assert "the decoder crashed on this file" in summary(ds)
    statuses = [named(g, "Summary of Analyses")[0].ConceptCodeSequence[0].CodeMeaning for g in groups(ds)]
    assert statuses == ["Succeeded", "Not Attempted", "Failed"]
    assert [len(named(g, "Finding")) for g in groups(ds)] == [1, 0, 0]


def test_the_report_is_evidenced_by_every_image_analysed_or_not() -> None:
    images = SCENARIOS["mixed"]()
    (study,) = read(images).CurrentRequestedProcedureEvidenceSequence
    found = [r.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for r in s.ReferencedSOPSequence]
    assert sorted(found) == sorted(text_of(i.source, "SOPInstanceUID") for i in images)


def test_two_images_may_share_their_sop_instance_uid() -> None:
    images = SCENARIOS["shared_uid"]()
    ds = read(images)
    (series,) = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == 1
    uids = {named(g, "Tracking Unique Identifier")[0].UID for g in groups(ds)}
    assert len(uids) == 2


@pytest.mark.parametrize("keyword", ["PatientID", "IssuerOfPatientID"])
def test_no_report_speaks_of_two_patients(keyword: str) -> None:
    images = [analysed(), rejected(header(overrides={keyword: "OTHER"}))]
    with pytest.raises(ResultError, match="one patient, these images belong to 2"):
        build_sr(images, context())


def test_a_report_says_that_its_study_holds_other_patients() -> None:
    images = [analysed()]
    ds = build_sr(images, context(), alone=False)
    check(ds, images)
    assert "CAUTION: other images of this study carry another patient" in summary(ds)
    assert ds.SOPInstanceUID != build_sr(images, context()).SOPInstanceUID


@pytest.mark.parametrize(
    ("keyword", "value", "caution"),
    [
        ("PatientName", "Smith^Other", True),
        ("PatientBirthDate", "19991231", True),
        ("PatientName", "DOE^JOHN^^ ", False),
        ("PatientBirthDate", "", False),
        ("StudyID", "2", True),
        ("StudyID", "1 ", False),
        ("AccessionNumber", "ACC1=2", True),
    ],
)
def test_one_patient_id_with_two_names_or_dates_of_birth_is_pointed_out(
    keyword: str, value: str, caution: bool
) -> None:
    one = header(overrides={"PatientName": "Doe^John", "PatientBirthDate": "19400319"})
    other = header(overrides={"PatientName": "Doe^John", "PatientBirthDate": "19400319", keyword: value})
    said = summary(read([analysed(one), rejected(other)]))
    assert (f"CAUTION: the images carry one patient ID and differ in {keyword}." in said) is caution
    assert "Smith" not in said


def test_the_procedure_is_the_sources_where_it_has_a_complete_one() -> None:
    procedures = {
        name: named(read(SCENARIOS[name]()), "Procedure reported")[0].ConceptCodeSequence[0].CodeMeaning
        for name in ("ordered", "positive", "ct")
    }
    assert procedures == {"ordered": "XR Chest 2 Views", "positive": "Plain chest X-ray", "ct": "Imaging procedure"}


def test_the_order_is_carried_over() -> None:
    (request,) = read(SCENARIOS["ordered"]()).ReferencedRequestSequence
    assert (request.AccessionNumber, request.RequestedProcedureID) == ("A4711", "RP17")
    assert request.RequestedProcedureDescription == "Röntgen Thorax"


def test_the_frame_of_reference_is_the_one_that_all_images_share() -> None:
    images = SCENARIOS["ordered"]()
    assert read(images).FrameOfReferenceUID == "2.25.4711"
    assert build_capture(images[0], preview(), cam(), context()).FrameOfReferenceUID == "2.25.4711"
    apart = [analysed(header(overrides={"FrameOfReferenceUID": uid})) for uid in ("2.25.1", "2.25.2")]
    assert "FrameOfReferenceUID" not in read(apart)


def test_only_the_causes_shape_the_uids() -> None:
    """Rule 3: not when it ran, nor in which order the files came."""
    images = SCENARIOS["mixed"]()
    here, there = context(), replace(context(at=LATE_AT), software_version="9")
    assert build_sr(images, here).SOPInstanceUID == build_sr(images[::-1], there).SOPInstanceUID
    assert encode(build_sr(images, here)) == encode(build_sr(images[::-1], here))
    others = [
        build_sr(images[:2], here),
        build_sr([replace(images[0], pixel_digest="00"), *images[1:]], here),
        build_sr([images[0], images[1], rejected(images[2].source, Reason.UNDECODABLE)], here),
        build_sr(images, context(make_bundle(version="2"))),
    ]
    assert len({str(ds.SOPInstanceUID) for ds in [build_sr(images, here), *others]}) == 5
    assert others[0].SeriesInstanceUID != others[3].SeriesInstanceUID


def test_times_are_told_in_the_sources_zone() -> None:
    ds = read([analysed(header(overrides={"TimezoneOffsetFromUTC": "-0400"}))])
    assert (ds.ContentDate, ds.ContentTime, ds.TimezoneOffsetFromUTC) == ("20261121", "171507.123456", "-0400")
    plain = read([analysed()])
    assert (plain.ContentTime, plain.TimezoneOffsetFromUTC) == ("221507.123456", "+0100")


def test_codes_come_from_the_bundle() -> None:
    bundle = make_bundle(labels=private_labels())
    images = [analysed()]
    ds = decode(encode(build_sr(images, context(bundle))))
    check(ds, images, bundle)
    (group,) = groups(ds)
    assert named(group, "Finding")[0].ConceptCodeSequence[0].CodingSchemeDesignator == "99SITE"
    assert named(group, "Virale Lungenentzundung")[0].ConceptNameCodeSequence[0].LongCodeValue.startswith("a-code")
    assert ds.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99SITE"


def test_the_sources_header_is_left_as_it_is() -> None:
    image = SCENARIOS["dirty"]()[0]
    before = {tag: image.source.get_item(tag) for tag in image.source.keys()}  # noqa: SIM118
    build_sr([image], context())
    assert {tag: image.source.get_item(tag) for tag in image.source.keys()} == before  # noqa: SIM118


def test_nothing_warns_on_a_dirty_source() -> None:
    images = SCENARIOS["dirty"]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encode(build_sr(images, context()))
    assert caught == []


def test_what_cannot_be_reported_is_refused_with_its_reason() -> None:
    with pytest.raises(ResultError, match="at least one image"):
        build_sr([], context())
    with pytest.raises(ResultError, match="belong to 2"):
        build_sr([analysed(), analysed(header(seed=5))], context())
    with pytest.raises(ResultError, match="SOPInstanceUID is missing"):
        build_sr([analysed(header({"SOPInstanceUID": ("UI", b"")}))], context())
    with pytest.raises(ResultError, match="either"):
        build_sr([replace(analysed(), prediction=None)], context())


def test_a_run_without_a_time_zone_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="time zone"):
        context(at=LATE_AT.replace(tzinfo=None))
