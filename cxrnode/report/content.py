"""Content items of a Structured Report (PS3.3 section C.17.3).

Built straight from pydicom: highdicom's templates are the reference (the tests read every report with them and with
three other readers), but checking each item's type as they do costs more than the rest of the report.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence_item
from pydicom.tag import BaseTag

from engines.bundle import Code

CONCEPT_NAME, CONCEPT_CODE, UNITS_CODE = 0x0040A043, 0x0040A168, 0x004008EA
CONTAINS, CONCEPT_MOD, OBS_CONTEXT = "CONTAINS", "HAS CONCEPT MOD", "HAS OBS CONTEXT"
NO_UNITS = Code(value="1", scheme="UCUM", meaning="no units")


def dcm(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="DCM", meaning=meaning)


def sct(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="SCT", meaning=meaning)


def new_item() -> Dataset:
    """An empty sequence item, marked as explicit VR little endian, which spares pydicom a pass over it."""
    item = Dataset()
    item.set_original_encoding(False, True, default_encoding)
    return item


def set_code(item: Dataset, tag: int, code: Code) -> None:
    """Put a sequence of one code into `item`.

    A code in ASCII goes in already encoded: two thirds of a report's elements are such codes, always the same ones,
    and pydicom takes longer to write them than everything else. It parses them only for whoever reads them.
    """
    if code.meaning.isascii():
        item[tag] = _encoded(tag, code)
    else:
        item.add_new(tag, "SQ", [code_item(code)])


@lru_cache(maxsize=512)
def _encoded(tag: int, code: Code) -> RawDataElement:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_sequence_item(buffer, code_item(code), [default_encoding])
    value = buffer.getvalue()
    return RawDataElement(BaseTag(tag), "SQ", len(value), value, 0, False, True)


def code_item(code: Code) -> Dataset:
    """Code Sequence Macro (PS3.3 table 8.8-1): a value over 16 characters is a Long Code Value."""
    item = new_item()
    if len(code.value) <= 16:
        item.CodeValue = code.value
    else:
        item.LongCodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return item


def text(name: Code, value: str, relation: str = CONTAINS) -> Dataset:
    item = _item("TEXT", name, relation)
    item.TextValue = value
    return item


def code(name: Code, value: Code, relation: str = CONTAINS, children: Iterable[Dataset] = ()) -> Dataset:
    item = _item("CODE", name, relation, children)
    set_code(item, CONCEPT_CODE, value)
    return item


def uidref(name: Code, value: str, relation: str = CONTAINS) -> Dataset:
    item = _item("UIDREF", name, relation)
    item.UID = value
    return item


def num(name: Code, value: str, children: Iterable[Dataset] = ()) -> Dataset:
    """A number without units; `value` is a DS."""
    item = _item("NUM", name, CONTAINS, children)
    measured = new_item()
    measured.NumericValue = value
    set_code(measured, UNITS_CODE, NO_UNITS)
    item.MeasuredValueSequence = [measured]
    return item


def reference(name: Code, sop_class_uid: str, sop_instance_uid: str, *, is_image: bool = True) -> Dataset:
    item = _item("IMAGE" if is_image else "COMPOSITE", name, CONTAINS)
    item.ReferencedSOPSequence = [sop_reference(sop_class_uid, sop_instance_uid)]
    return item


def sop_reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = new_item()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


def container(
    name: Code, children: Iterable[Dataset], *, relation: str | None = CONTAINS, template: str | None = None
) -> Dataset:
    item = _item("CONTAINER", name, relation, children)
    item.ContinuityOfContent = "SEPARATE"
    if template is not None:
        identified = new_item()
        identified.MappingResource = "DCMR"
        identified.TemplateIdentifier = template
        item.ContentTemplateSequence = [identified]
    return item


def _item(value_type: str, name: Code, relation: str | None, children: Iterable[Dataset] = ()) -> Dataset:
    item = new_item()
    if relation is not None:
        item.RelationshipType = relation
    item.ValueType = value_type
    set_code(item, CONCEPT_NAME, name)
    content = list(children)
    if content:
        item.ContentSequence = content
    return item
