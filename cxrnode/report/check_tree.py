"""The content tree of a report as it stands, compared with what it must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from pydicom import Dataset

from cxrnode.dicom.uids import is_valid_uid
from cxrnode.report.check_content import A_UID, ANY, NO_UNITS, Line, Triple

_CLOSE = 1e-6  # probabilities are rounded to six decimals


def lines_of(item: Dataset, depth: int = 0) -> Iterator[Line]:
    """The items of a tree. Their values: text, UID, Triple, number, (SOP class, instance) or, of a container,
    (continuity, template, mapping resource)."""
    relation, kind = str(item.get("RelationshipType") or ""), str(item.get("ValueType") or "")
    yield Line(depth, relation, kind, _code(item, "ConceptNameCodeSequence"), _value(item, kind))
    for child in item.get("ContentSequence") or []:
        yield from lines_of(child, depth + 1)


def differences(found: Sequence[Line], expected: Sequence[Line]) -> Iterator[str]:
    """The first item that is not what it must be, without its value, which may be the source's."""
    for have, want in zip_longest(found, expected):
        if want is None:
            yield "a content item follows that must not be there"
        elif have is None or have.depth != want.depth or not fits(have.name, want.name):
            yield f"{want.name.meaning} is missing, or another item stands in its place"
        elif have.relation != want.relation or have.kind not in want.kind.split(" or "):
            yield f"{want.name.meaning} is not {want.relation} {want.kind}"
        elif not fits(have.value, want.value):
            yield f"{want.name.meaning} is not what it must be"
        else:
            continue
        return


def fits(have: object, want: object) -> bool:
    """Whether something is what it must be."""
    if want is ANY:
        return True
    if want is A_UID:
        return is_valid_uid(have)
    if isinstance(have, Triple) and isinstance(want, Triple):  # its meaning may have lost what is not ASCII
        return have[:2] == want[:2] and (have.meaning == want.meaning or not want.meaning.isascii())
    if isinstance(have, float) and isinstance(want, float):
        return abs(have - want) < _CLOSE
    return have == want


def _value(item: Dataset, kind: str) -> object:
    if kind == "CODE":
        return _code(item, "ConceptCodeSequence")
    if kind == "NUM":
        return _number(item)
    if kind in ("IMAGE", "COMPOSITE"):
        references = item.get("ReferencedSOPSequence") or []
        pairs = [(str(r.get("ReferencedSOPClassUID")), str(r.get("ReferencedSOPInstanceUID"))) for r in references]
        return pairs[0] if len(pairs) == 1 else None
    if kind == "CONTAINER":
        template = _one(item, "ContentTemplateSequence")
        keywords = ("TemplateIdentifier", "MappingResource")
        return (str(item.get("ContinuityOfContent")), *(str(template.get(k) or "") for k in keywords))
    return str(item.get("TextValue" if kind == "TEXT" else "UID") or "")


def _number(item: Dataset) -> float | None:
    """Of a measurement without units, whose two forms agree."""
    measured = _one(item, "MeasuredValueSequence")
    text, exact = measured.get("NumericValue"), measured.get("FloatingPointValue")
    if text is None or _code(measured, "MeasurementUnitsCodeSequence") != NO_UNITS:
        return None
    return float(text) if exact is None or abs(float(exact) - float(text)) < _CLOSE else None


def _one(item: Dataset, keyword: str) -> Dataset:
    """The one item of a sequence; an empty one where there is none, or several."""
    items = item.get(keyword) or []
    return items[0] if len(items) == 1 else Dataset()


def codes_of(item: Dataset, keyword: str) -> list[Triple]:
    """The codes of a sequence."""
    return [
        Triple(
            _text(code, "CodeValue") or _text(code, "LongCodeValue"),
            _text(code, "CodingSchemeDesignator"),
            _text(code, "CodeMeaning"),
        )
        for code in item.get(keyword) or []
    ]


def _code(item: Dataset, keyword: str) -> Triple:
    """The one code of a sequence; of empty texts where there is none, or several."""
    codes = codes_of(item, keyword)
    return codes[0] if len(codes) == 1 else Triple("", "", "")


def _text(item: Dataset, keyword: str) -> str:
    """As it is encoded, a character a byte: a code of the source may be in any character set."""
    value = item.get_item(keyword).value if keyword in item else ""
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip(" \0")
