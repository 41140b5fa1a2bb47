"""Files whose elements hold any bytes, encoded here by hand: pydicom's writer would refuse, decode or mend them."""

from __future__ import annotations

import struct
import zlib

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.support.make_dicom import chest

Element = tuple[str, bytes]  # VR, value
_LONG = {"OB", "OW", "SQ", "UC", "UN", "UR", "UT"}


def element(syntax: str, tag: int, vr: str, value: bytes) -> bytes:
    """One element, its value as it is but for the padding to an even length."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if syntax == ImplicitVRLittleEndian:
        return head + struct.pack("<L", len(value)) + value
    if vr in _LONG:
        return head + vr.encode() + b"\0\0" + struct.pack(f"{order}L", len(value)) + value
    return head + vr.encode() + struct.pack(f"{order}H", len(value)) + value


def item(syntax: str, elements: dict[str, Element]) -> bytes:
    """The elements of an item, in the order of their tags."""
    tagged = sorted((tag_for_keyword(k) or 0, vr, value) for k, (vr, value) in elements.items())
    return b"".join(element(syntax, *e) for e in tagged)


def sequence(syntax: str, *items: bytes) -> bytes:
    """The value of a sequence, its items of defined length."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    return b"".join(struct.pack(f"{order}HHL", 0xFFFE, 0xE000, len(i)) + i for i in items)


def dirty_file(
    elements: dict[str, Element], *, syntax: str = ExplicitVRLittleEndian, source: Dataset | None = None
) -> bytes:
    """A Part 10 file of `source` (else of a small chest radiograph), with `elements` in the place of its own."""
    ds = chest(64, 56) if source is None else source
    parts: dict[int, bytes] = {}
    for e in ds:
        one = Dataset()
        one[e.tag] = e
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        write_dataset(buffer, one)
        parts[e.tag] = buffer.getvalue()
    for keyword, (vr, value) in elements.items():
        tag = tag_for_keyword(keyword) or 0
        parts[tag] = element(syntax, tag, vr, value)
    body = b"".join(parts[tag] for tag in sorted(parts))
    if syntax == DeflatedExplicitVRLittleEndian:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflater.compress(body) + deflater.flush()
    meta = ds.file_meta
    meta.TransferSyntaxUID = UID(syntax)
    f = DicomBytesIO()
    f.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(f, meta, enforce_standard=True)
    return f.getvalue() + body
