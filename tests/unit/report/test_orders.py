"""The orders that a report answers: every one that an image names, whole."""

from __future__ import annotations

from typing import Any

from pydicom import Dataset

from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from cxrnode.types import ImageResult
from tests.support.encoded import flat, parse
from tests.support.results import analysed, check, context, header, rejected

ACCESSION, PROCEDURE_ID, TERMS, STUDY = "00080050", "00401001", "00080005", "0020000D"


def order(**of: str) -> Dataset:
    item = Dataset()
    for keyword, value in of.items():
        setattr(item, keyword, value)
    return item


def film(number: int, *orders: Dataset, **overrides: Any) -> Dataset:
    given = {"InstanceNumber": number, "RequestAttributesSequence": list(orders), **overrides}
    return header(uids=("2.25.77", "2.25.78", f"2.25.79{number}"), overrides=given)


def requests(images: list[ImageResult]) -> list[dict[str, bytes]]:
    """The items of Referenced Request Sequence, as they are encoded."""
    data = encode(build_sr(images, context()))
    check(decode(data), images)
    found: dict[str, dict[str, bytes]] = {}
    for path, _, value in flat(parse(data)):
        if path.startswith("0040A370["):
            place, _, rest = path.partition(".")
            found.setdefault(place, {})[rest] = value
    return list(found.values())


def test_every_image_brings_its_orders_and_none_is_told_twice() -> None:
    one, two, three = (order(RequestedProcedureID=n, AccessionNumber=f"A{n}") for n in ("R1", "R2", "R3"))
    images = [analysed(film(1, one, two)), rejected(film(2, two, three)), rejected(film(3))]
    found = requests(images)
    assert [(r[PROCEDURE_ID], r[ACCESSION]) for r in found] == [(b"R1", b"AR1 "), (b"R2", b"AR2 "), (b"R3", b"AR3 ")]


def test_accession_numbers_that_differ_are_all_told() -> None:
    images = [analysed(film(n, AccessionNumber=a)) for n, a in enumerate(("A1", "A2", "A1", ""), 1)]
    assert [r[ACCESSION] for r in requests(images)] == [b"A1", b"A2"]
    (said,) = (
        str(i.TextValue) for i in build_sr(images, context()).ContentSequence if "CAUTION" in i.get("TextValue", "")
    )
    assert "CAUTION: the images carry one patient ID and differ in AccessionNumber." in said


def test_an_accession_number_that_an_order_has_is_told_once() -> None:
    whole = order(AccessionNumber="A1", RequestedProcedureID="R1")
    images = [analysed(film(1, whole, AccessionNumber="A1")), analysed(film(2, AccessionNumber="A2"))]
    assert [(r[PROCEDURE_ID], r[ACCESSION]) for r in requests(images) if PROCEDURE_ID in r] == [
        (b"R1", b"A1"), (b"", b"A2"),
    ]  # fmt: skip


def test_one_accession_number_makes_no_order() -> None:
    assert requests([analysed(film(1, AccessionNumber="A1")), analysed(film(2, AccessionNumber="A1 "))]) == []


def test_an_order_that_knows_its_study_keeps_it() -> None:
    (found,) = requests([analysed(film(1, order(RequestedProcedureID="R", StudyInstanceUID="1.2.3")))])
    assert found[STUDY] == b"1.2.3\0"
    (found,) = requests([analysed(film(1, order(RequestedProcedureID="R")))])
    assert found[STUDY] == b"2.25.77\0"


def test_an_order_of_another_image_says_how_it_is_encoded() -> None:
    latin = film(1, order(RequestedProcedureDescription="Röntgen"), SpecificCharacterSet="ISO_IR 100")
    greek = film(2, order(RequestedProcedureDescription="ακτίνες"), SpecificCharacterSet="ISO_IR 126")
    plain = film(3, order(RequestedProcedureDescription="plain"), SpecificCharacterSet="ISO_IR 192")
    found = requests([analysed(latin), analysed(greek), analysed(plain)])
    assert [r.get(TERMS) for r in found] == [None, b"ISO_IR 126", None]
    assert found[1]["00321060"] == "ακτίνες".encode("iso8859_7") + b" "


def test_an_order_takes_the_study_s_accession_number_only_where_it_can_be_read() -> None:
    """Escape sequences are ASCII by their bytes."""
    own = order(RequestedProcedureDescription="ρ")
    own.SpecificCharacterSet = "ISO_IR 126"
    kanji = analysed(film(1, own, SpecificCharacterSet="\\ISO 2022 IR 87", AccessionNumber="山"))
    (found,) = requests([kanji])
    assert found[ACCESSION] == b""
    (found,) = requests([analysed(film(1, own, AccessionNumber="A1"))])
    assert found[ACCESSION] == b"A1"


def test_an_order_is_carried_over_whole() -> None:
    def named(keyword: str, value: str) -> Dataset:
        return order(**{keyword: value})

    whole = order(
        AccessionNumber="A1", PlacerOrderNumberImagingServiceRequest="P1", FillerOrderNumberImagingServiceRequest="F1",
        RequestedProcedureID="R1", RequestedProcedureDescription="Chest",
    )  # fmt: skip
    whole.IssuerOfAccessionNumberSequence = [named("LocalNamespaceEntityID", "RIS1")]
    whole.OrderPlacerIdentifierSequence = [named("LocalNamespaceEntityID", "PLACE1")]
    whole.OrderFillerIdentifierSequence = [named("UniversalEntityID", "1.2.36")]
    data = encode(build_sr([analysed(film(1, whole, AccessionNumber="A1"))], context()))
    (request,) = decode(data).ReferencedRequestSequence
    assert request.StudyInstanceUID == "2.25.77"
    assert [len(request[k].value) for k in ("ReferencedStudySequence", "RequestedProcedureCodeSequence")] == [0, 0]
    for keyword in (
        "AccessionNumber", "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest",
        "RequestedProcedureID", "RequestedProcedureDescription", "IssuerOfAccessionNumberSequence",
        "OrderPlacerIdentifierSequence", "OrderFillerIdentifierSequence",
    ):  # fmt: skip
        assert request[keyword].value == whole[keyword].value
    assert "SpecificCharacterSet" not in request
    own = order(RequestedProcedureDescription="ρ")
    own.SpecificCharacterSet = "ISO_IR 126"
    (found,) = requests([analysed(film(1, own))])
    assert found[TERMS] == b"ISO_IR 126"


def test_what_an_order_does_not_say_is_empty_where_it_must_stand() -> None:
    """Type 2 of PS3.3 table C.17-2."""
    (found,) = requests([analysed(film(1, order(RequestedProcedureID="R"), AccessionNumber=""))])
    assert {k: v for k, v in found.items() if k != STUDY} == {
        ACCESSION: b"", PROCEDURE_ID: b"R ", "00321060": b"", "00402016": b"", "00402017": b"",
    }  # fmt: skip
