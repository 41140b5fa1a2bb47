"""Content items of a Structured Report (PS3.3 section C.17.3), made with highdicom, which checks each as it is made."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom import Dataset, Sequence

from cxrnode.report.source import ascii_text
from engines.bundle import Code

CONTAINS, CONCEPT_MOD, OBS_CONTEXT = "CONTAINS", "HAS CONCEPT MOD", "HAS OBS CONTEXT"
NO_UNITS = Code(value="1", scheme="UCUM", meaning="no units")


def dcm(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="DCM", meaning=meaning)


def sct(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="SCT", meaning=meaning)


@lru_cache(maxsize=512)  # a report repeats a few codes a hundred times; nobody changes one
def concept(code: Code) -> CodedConcept:
    """Code Sequence Macro (PS3.3 table 8.8-1)."""
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=ascii_text(code.meaning))


def text(name: Code, value: str, relation: str = CONTAINS) -> ContentItem:
    return TextContentItem(concept(name), ascii_text(value), relation)


def code(name: Code, value: Code, relation: str = CONTAINS) -> ContentItem:
    return CodeContentItem(concept(name), concept(value), relation)


def copied_code(name: Code, value: Dataset, relation: str = CONTAINS) -> ContentItem:
    """value: an item of a code sequence that is the source's own."""
    item: ContentItem = CodeContentItem(concept(name), concept(name), relation)
    item["ConceptCodeSequence"].value = Sequence([value])
    return item


def uidref(name: Code, value: str, relation: str = CONTAINS) -> ContentItem:
    return UIDRefContentItem(concept(name), value, relation)


def num(name: Code, value: float, children: Iterable[ContentItem] = ()) -> ContentItem:
    """A number without units."""
    return _with_children(NumContentItem(concept(name), value, concept(NO_UNITS), relationship_type=CONTAINS), children)


def reference(name: Code, sop_class_uid: str, sop_instance_uid: str, *, is_image: bool = True) -> ContentItem:
    make = ImageContentItem if is_image else CompositeContentItem
    return make(concept(name), sop_class_uid, sop_instance_uid, relationship_type=CONTAINS)


def container(
    name: Code, children: Iterable[ContentItem], *, relation: str | None = CONTAINS, template: str | None = None
) -> ContentItem:
    """relation=None: the root of the report."""
    item = ContainerContentItem(
        concept(name), is_content_continuous=False, template_id=template, relationship_type=relation
    )
    return _with_children(item, children)


def _with_children(item: ContentItem, children: Iterable[ContentItem]) -> ContentItem:
    content = list(children)
    if content:
        item.ContentSequence = ContentSequence(content)
    return item


def sop_reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """SOP Instance Reference Macro (PS3.3 table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item
