"""Reading order, the image that speaks for the study, times, and texts that are cut."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pydicom import Dataset

from cxrnode.errors import ResultError
from cxrnode.report.capture import build_capture
from cxrnode.report.common import check_images, lead_of, name_private_schemes, reading_order
from cxrnode.report.patients import by_patient, differences, patient_of
from cxrnode.report.sr import build_sr, image_text
from cxrnode.types import ImageResult, Rejection
from engines.bundle import Code
from tests.support.bundles import make_bundle
from tests.support.results import POSITIVE, analysed, cam, check, context, header, preview, rejected


def film(series: Any, instance: Any, uid: str = "2.25.79", **more: Any) -> Dataset:
    given = {"SeriesNumber": series, "InstanceNumber": instance, **more}
    return header(uids=("2.25.77", "2.25.78", uid), overrides=given)


def test_by_series_and_instance_number_then_uid_then_pixels() -> None:
    in_order = [
        analysed(film(None, None)),  # no number counts as 0
        analysed(film(None, 1)),
        analysed(film(2, 9)),
        analysed(film(2, 10, "2.25.71")),
        analysed(film(2, 10, "2.25.72"), digest="a1"),
        analysed(film(2, 10, "2.25.72"), digest="c3"),
        analysed(film(10, 1)),
    ]
    for images in (in_order, in_order[::-1], in_order[3:] + in_order[:3]):
        assert reading_order(images) == in_order


def test_the_first_image_that_was_analysed_speaks_for_the_study() -> None:
    lateral, second, third = rejected(film(1, 1)), analysed(film(1, 2)), analysed(film(1, 3))
    assert lead_of([third, second, lateral]) is second
    assert lead_of([lateral]) is lateral
    other = rejected(film(1, 0))
    assert lead_of([lateral, other]) is other


def test_the_report_s_patient_module_is_the_lead_s() -> None:
    first = rejected(film(1, 1, PatientName="Rejected^Name", StudyDescription="lateral"))
    second = analysed(film(1, 2, "2.25.70", PatientName="Analysed^Name", StudyDescription="frontal"))
    ds = build_sr([first, second], context())
    assert (ds["PatientName"].value, ds["StudyDescription"].value) == (b"Analysed^Name ", b"frontal ")


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_a_probability_may_be_0_or_1(edge: float) -> None:
    check_images([analysed(probabilities=(edge, edge, edge))])


def test_an_image_is_either_analysed_or_not() -> None:
    both = replace(analysed(), rejection=rejected().rejection)
    for wrong in (both, replace(both, prediction=None, rejection=None)):
        with pytest.raises(ResultError, match="either a prediction or a rejection"):
            check_images([analysed(), wrong])


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_each_uid_is_needed(keyword: str) -> None:
    with pytest.raises(ResultError, match=f"the source's {keyword} is missing or invalid: reject it as missing_uid"):
        check_images([analysed(), analysed(header({keyword: ("UI", b"1.2.x")}))])


# --- times


@pytest.mark.parametrize(
    ("zone", "date", "clock", "told"),
    [
        ("+0530", "20261122", "024507.123456", "+0530"),
        ("-0030", "20261121", "204507.123456", "-0030"),
        ("+0000", "20261121", "211507.123456", "+0000"),
        ("+1400", "20261122", "111507.123456", "+1400"),
        ("-1200", "20261121", "091507.123456", "-1200"),
        ("+0059", "20261121", "221407.123456", "+0059"),
        *((bad, "20261121", "221507.123456", "+0100") for bad in
          ("+1401", "-1201", "+1500", "-1300", "+0060", "-0000", "0100", "+01:00", "+1a00", "*0100", "+01000", "")),
    ],
)  # fmt: skip
def test_times_are_the_source_s_zone_s_where_it_has_one(zone: str, date: str, clock: str, told: str | None) -> None:
    """PS3.3 C.12.1.1.8, PS3.5 table 6.2-1: -1200 to +1400, and no -0000. The node's own zone is one hour east."""
    source = header({"TimezoneOffsetFromUTC": ("SH", zone.encode())})
    for ds in (build_sr([analysed(source)], context()), build_capture(analysed(source), preview(), cam(), context())):
        assert (ds.ContentDate, ds.ContentTime) == (ds.InstanceCreationDate, ds.InstanceCreationTime) == (date, clock)
        assert ds.get("TimezoneOffsetFromUTC") == told
        assert ds.ContributingEquipmentSequence[0].ContributionDateTime == "20261121221507.123456+0100"


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize(
    ("study_date", "study_time", "at", "told", "content"),
    [
        ("20260115", "101500", datetime(2026, 1, 15, 9, 20, tzinfo=UTC), "+0100", "102000"),
        ("20260715", "101500", datetime(2026, 7, 15, 8, 20, tzinfo=UTC), "+0200", "102000"),
        ("20260115", "101500", datetime(2026, 7, 15, 8, 20, tzinfo=UTC), "+0100", "092000"),  # as it was in winter
        ("20260715", "1015", datetime(2026, 12, 15, 9, 20, tzinfo=UTC), "+0200", "112000"),
        ("20260715", "101500.5", datetime(2026, 7, 15, 8, 11, tzinfo=UTC), "+0200", "101100"),  # its clock is ahead
        ("20260715", "101500", datetime(2026, 7, 15, 7, 30, tzinfo=UTC), None, "093000"),  # of a zone further east
        ("", "", datetime(2026, 7, 15, 8, 20, tzinfo=UTC), "+0200", "102000"),
        ("2026.07.15", "10:15", datetime(2026, 7, 15, 8, 20, tzinfo=UTC), "+0200", "102000"),
        ("18800715", "1015", datetime(2026, 7, 15, 8, 20, tzinfo=UTC), "+0053", "091300"),  # before there were zones
    ],
)  # fmt: skip
def test_without_a_zone_of_the_source_it_is_this_machine_s_when_the_study_was_made(
    study_date: str, study_time: str, at: datetime, told: str | None, content: str
) -> None:
    source = header({"StudyDate": ("DA", study_date.encode()), "StudyTime": ("TM", study_time.encode())})
    image, here = analysed(source), context(at=at.astimezone())
    for ds in (build_sr([image], here), build_capture(image, preview(), cam(), here)):
        assert ds.get("TimezoneOffsetFromUTC") == told
        assert str(ds.ContentTime)[:6] == content
        check(ds, [image])


def test_the_results_of_a_series_share_its_date_and_time() -> None:
    """PS3.3 C.7.3.1: an attribute of a series is the same in all its instances, however far apart they were made."""
    began, one, other = (datetime(2026, 11, day, 23, 5, 6, 7, tzinfo=UTC) for day in (20, 21, 22))
    made = [
        build_capture(analysed(), preview(), cam(), replace(context(), analysed_at=at, series_at=began))
        for at in (one, other)
    ]
    assert [(ds.SeriesDate, ds.SeriesTime) for ds in made] == [("20261120", "230506.000007")] * 2
    assert [ds.ContentDate for ds in made] == ["20261121", "20261122"]


# --- texts


def test_long_texts_of_a_bundle_are_cut_to_what_their_vr_takes() -> None:
    long = make_bundle(version="1." + "2" * 80)
    ds = build_sr([analysed()], context(long))
    assert ds.SeriesDescription == "AI report cxr3-test 1." + "2" * 42
    assert list(ds.SoftwareVersions)[:2] == ["cxrnode 0.1.0", "cxr3-test 1." + "2" * 52]
    assert ds.ContributingEquipmentSequence[0].SoftwareVersions == "1." + "2" * 62
    named = replace(long, manifest=long.manifest.model_copy(update={"name": "n" * 70}))
    item = build_sr([analysed()], context(named)).ContributingEquipmentSequence[0]
    assert item.ManufacturerModelName == "n" * 64


def test_a_text_cut_at_a_blank_does_not_end_in_one() -> None:
    ds = build_sr([analysed()], context(make_bundle(version="1." + "2" * 41 + " 3")))
    assert ds.SeriesDescription == "AI report cxr3-test 1." + "2" * 41
    ds = build_sr([analysed()], context(make_bundle(version="1." + "2" * 51 + " 3")))
    assert ds.SoftwareVersions[1] == "cxr3-test 1." + "2" * 51


def test_a_long_derivation_is_cut() -> None:
    ds = build_capture(analysed(), preview(64, 56), cam(), context(make_bundle(version="1" * 2000)), long_side=256)
    assert ds.DerivationDescription == ("Grad-CAM of cxr3-test " + "1" * 2000)[:1024]


def test_words_of_ours_are_ascii() -> None:
    ds = build_sr([analysed()], context(make_bundle(version="1.0 ß é")))
    assert ds.SoftwareVersions[1] == "cxr3-test 1.0 ? e"
    assert ds.ContributingEquipmentSequence[0].SoftwareVersions == "1.0 ? e"


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ({"SeriesNumber": 0, "InstanceNumber": 12}, "series 0, instance 12"),
        ({"SeriesNumber": None, "InstanceNumber": None}, "series -, instance -"),
        ({"SeriesNumber": 3, "InstanceNumber": None}, "series 3, instance -"),
    ],
)
def test_where_an_image_is(overrides: dict[str, Any], where: str) -> None:
    source = header(uids=("2.25.77", "2.25.78", "2.25.79"), overrides=overrides)
    assert image_text(rejected(source, detail=""), context()) == f"2.25.79 ({where}): NOT ANALYSED - not a frontal view"


def test_probabilities_are_told_with_three_digits() -> None:
    said = image_text(analysed(probabilities=(0.49951, 0.19949, 0.3)), context())
    assert said.endswith("UNDETERMINED (covid 0.500 undetermined, viral 0.199 absent, normal 0.300 undetermined)")
    assert POSITIVE[0] == 0.93


# --- patients


def of(
    patient: str, uid: str = "2.25.79", *, name: str = "A^B", analysed_: bool = True, digest: str = "a1"
) -> ImageResult:
    source = header(uids=("2.25.77", "2.25.78", uid), overrides={"PatientID": patient, "PatientName": name})
    return analysed(source, digest=digest) if analysed_ else replace(rejected(source), pixel_digest=digest * 32)


def test_each_patient_has_its_own_images_in_the_order_of_arrival() -> None:
    images = [of("1", "2.25.1"), of("2", "2.25.2"), of("1", "2.25.3"), of("3", "2.25.4"), of("2", "2.25.5")]
    assert by_patient(images) == [(0, 2), (1, 4), (3,)]


def test_of_an_image_that_came_again_the_copy_that_was_analysed_counts() -> None:
    good, bad = of("1"), of("1", analysed_=False)
    assert by_patient([bad, good]) == by_patient([bad, good, bad]) == by_patient([bad, good, good]) == [(1,)]
    assert by_patient([good, bad]) == by_patient([good, good]) == [(0,)]
    assert by_patient([bad, bad]) == [(1,)]  # else the newest
    assert by_patient([good, of("1", digest="c3"), of("1", "2.25.80")]) == [(0, 1, 2)]  # others


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"PatientID": "1"}, {"PatientID": "1 "}, True),
        ({"PatientID": "1"}, {"PatientID": "1", "PatientName": "Other", "PatientBirthDate": "19000101"}, True),
        ({"PatientID": "1"}, {"PatientID": "1", "IssuerOfPatientID": "B"}, False),
        ({"PatientID": "1"}, {"PatientID": "01"}, False),
        ({"PatientID": "", "PatientName": "A"}, {"PatientID": "", "PatientName": "A"}, True),
        ({"PatientID": "", "PatientName": "A"}, {"PatientID": "", "PatientName": "B"}, False),
        ({"PatientID": ""}, {"PatientID": "", "PatientBirthDate": "19000101"}, False),
        ({"PatientID": ""}, {"PatientID": "", "IssuerOfPatientID": "B"}, False),
        ({"PatientID": "", "PatientName": "1"}, {"PatientID": "1", "PatientName": ""}, False),
    ],
)
def test_whose_image_it_is(one: dict[str, str], other: dict[str, str], same: bool) -> None:
    assert (patient_of(header(overrides=one)) == patient_of(header(overrides=other))) is same


def test_what_differs_is_named_in_order() -> None:
    one = {"PatientName": "A^B=山^田", "PatientBirthDate": "19000101", "AccessionNumber": "1", "StudyID": "S"}
    two = {"PatientName": "a^b^", "PatientBirthDate": "19000102", "AccessionNumber": "2", "StudyID": "T"}
    assert differences([header(overrides=one), header(overrides=two)]) == [
        "PatientBirthDate", "AccessionNumber", "StudyID",
    ]  # fmt: skip
    assert differences([header(overrides=one), header(overrides={**one, "PatientName": "A^C"})]) == ["PatientName"]
    assert differences([header(overrides=one), header(overrides=dict.fromkeys(one, ""))]) == []
    assert differences([header(overrides={"PatientName": n}) for n in ("DOE^MAX", "DOE^MA")]) == ["PatientName"]
    assert differences([header(overrides={"PatientName": n}) for n in ("Doe^Max", "DOE^MAX^ ^")]) == []


# --- coding schemes, reasons


def test_private_coding_schemes_are_named_once_in_order() -> None:
    ds = Dataset()
    schemes = ("99B", "SCT", "99A", "99B", "DCM")
    name_private_schemes(ds, [Code(value=str(n), scheme=s, meaning="x") for n, s in enumerate(schemes)])
    items = [(i.CodingSchemeDesignator, i.CodingSchemeName, i.CodingSchemeResponsibleOrganization)
             for i in ds.CodingSchemeIdentificationSequence]  # fmt: skip
    assert items == [(s, "Private codes of the model bundle", "cxrnode") for s in ("99A", "99B")]
    plain = Dataset()
    name_private_schemes(plain, [Code(value="1", scheme="SCT", meaning="x")])
    assert "CodingSchemeIdentificationSequence" not in plain


@pytest.mark.parametrize("root", ["0.", "1.", "2.", "3."])
def test_a_frame_of_reference_that_cannot_be_is_left_out(root: str) -> None:
    ds = build_sr([analysed(header(overrides={"FrameOfReferenceUID": f"{root}840.1"}))], context())
    assert ds.get("FrameOfReferenceUID") == (None if root == "3." else f"{root}840.1")
    assert ("PositionReferenceIndicator" in ds) == (root != "3.")
    assert ds.get("PositionReferenceIndicator", "") == ""


def test_why_an_image_was_not_analysed_is_ascii() -> None:
    rejection = rejected().rejection
    assert isinstance(rejection, Rejection)
    said = image_text(rejected(detail="Ansicht=schräg"), context())
    assert said.endswith("NOT ANALYSED - not a frontal view: Ansicht=schrag")
