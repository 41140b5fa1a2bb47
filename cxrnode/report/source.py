"""A source's header: what its results say in its words is copied as bytes, what they read of it is cleaned.

Sources break their VRs and misspell their character sets all the time. Copied text is never decoded, so nothing of that
counts: the PACS that knew the source's patient knows the result's. Our own words in the same data set are ASCII, which
every character set holds.
"""

from __future__ import annotations

import re
import unicodedata

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword

from cxrnode.dicom.text import encoded
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.dicom.verbatim import LONG_TEXT_VRS, TEXT_VRS, Encoded
from cxrnode.errors import ResultError

_MOST = 0xFFFE  # bytes of a value with a length of 16 bits (PS3.5 section 7.1.2)


class Header:
    """A read-only view on a source's header, which is `dicom.verbatim`."""

    __slots__ = ("_ds",)

    def __init__(self, ds: Dataset) -> None:
        self._ds = ds

    def get(self, keyword: str) -> str:
        """The value, the first of several, where it is valid for its VR (PS3.5 section 6.2): "" where it is not.

        For what is ASCII by its VR; of free text the ASCII characters.
        """
        vr = dictionary_VR(keyword)
        text = encoded(self._ds, keyword).decode("ascii", "replace").strip("\0 ")
        if vr == "UI":  # several are none
            return text if is_valid_uid(text) else ""
        text = text.partition("\\")[0].strip()
        pattern = _PATTERNS.get(vr)
        return text if pattern is None or pattern.fullmatch(text) else ""

    def items(self, keyword: str) -> list[Header]:
        """The items of a sequence; [] where the element is absent or no sequence."""
        element = self._ds.get_item(keyword) if keyword in self._ds else None
        return [Header(item) for item in element.value] if element is not None and element.VR == "SQ" else []

    def raw(self, keyword: str) -> bytes:
        """The encoded value, without its padding."""
        return encoded(self._ds, keyword).strip(b"\0 ")

    def copy(self, keyword: str) -> DataElement | None:
        """The element as it came, for a result; None where there is none.

        Raises ResultError for what cannot be copied whole: it is no text, or no sequence, or too long for its VR.
        """
        if keyword not in self._ds:
            return None
        element = self._ds[keyword]
        if (fault := _fault(element, keyword)) is not None:
            raise ResultError(f"{fault}, so it cannot be copied whole: correct it in the source and send that again")
        return element

    def copy_into(self, ds: Dataset, *keywords: str, empty: bool = False) -> None:
        """Copy these elements; what the source does not have is left out, or written `empty`. Raises ResultError."""
        for keyword in keywords:
            element = self.copy(keyword)
            if element is None and empty:
                element = Encoded(tag_for_keyword(keyword) or 0, dictionary_VR(keyword), b"")
            if element is not None:
                ds[element.tag] = element


def ascii_text(text: str) -> str:
    """Our own words in every character set: letters without their accents, '?' for what is not ASCII.

    ISO IR 13 has other characters in the places of backslash and tilde (PS3.5 section 6.1.2.1).
    """
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return bare.encode("ascii", "replace").decode().replace("\\", "/").replace("~", "-")


def _fault(element: DataElement, keyword: str) -> str | None:
    """Why an element cannot be copied whole: in words, without its value."""
    if element.VR == "SQ":
        found = (_fault(nested, f"{keyword} > {nested.keyword}") for item in element.value for nested in item)
        return next((fault for fault in found if fault is not None), None)
    if not isinstance(element, Encoded):
        return None  # a number of an item
    vr = dictionary_VR(element.tag)
    if element.VR not in TEXT_VRS:
        return f"{keyword} of the source is no {'sequence' if vr == 'SQ' else 'text'}"
    if len(element.value) > _MOST and vr not in LONG_TEXT_VRS:
        return f"{keyword} of the source is longer than 64 KiB"
    return None


_PATTERNS = {
    "CS": re.compile(r"[A-Z0-9 _]{1,16}"),
    "IS": re.compile(r"[+-]?\d{1,9}"),
    "DS": re.compile(r"(?=.{1,16}$)[+-]?\d+(\.\d*)?([eE][+-]?\d+)?"),
}
