"""From bytes to a data set: recognised by content, never by name, and never a traceback whatever the bytes.

`flat` reads what is needed and no more; pydicom converts the values. What is judged here is whether the bytes are DICOM
at all, and whether every element that is kept can be read.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import DataElement, Dataset, FileDataset
from pydicom import uid as uids
from pydicom.dataset import FileMetaDataset

from cxrnode.dicom.flat import LONG_VRS, SHORT_VRS, UNDEFINED, FlatReader, Head, Inflated, Stream, is_explicit
from cxrnode.dicom.fragments import fragments, is_encapsulated, walk
from cxrnode.dicom.needed import KEPT_TAGS, TAGS
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.dicom.verbatim import DAMAGE, verbatim
from cxrnode.errors import Rejected
from cxrnode.types import Reason

_PIXELS = 0x7FE00010
_STOP = 0x7FE00008  # Float Pixel Data, the first of the elements that hold pixels (PS3.3 C.7.6.24)
_META = frozenset(range(0x00020000, 0x00020019))
_LOOK = 4096  # bytes, to see what a file is
_MANDATORY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


def read_header(f: BinaryIO, *, also: frozenset[int] = frozenset(), whole: bool = False) -> SourceDataset:
    """The elements that the node needs (see `needed`) and those with the tags `also`, without the pixel data.

    f is read forward from where it stands; with `whole` to its end, so that what is cut short anywhere is found.

    Raises Rejected: NOT_DICOM (the content is something else), TRUNCATED (it ends inside an element), TOO_LARGE (see
    `budget`), MISSING_UID (Study, Series, SOP Instance or SOP Class UID absent, empty or no UID), UNREADABLE_FILE
    (DICOM, but damaged so that it does not parse), DICOMDIR.
    """
    opened = _open(f)
    wanted = TAGS | also
    stop = _STOP if whole else min(_STOP, max(wanted) + 1)
    ds, head = opened.header(wanted, stop=stop)
    if whole:
        opened.reader.pass_to_end(head)
    return ds


def read_instance(raw: bytes | Path | BinaryIO) -> SourceDataset:
    """The same with the pixel data as encoded, of a file (path), of its content (bytes), or from a stream.

    Raises Rejected as `read_header` does, and TRUNCATED when the pixel data are shorter than declared, UNDECODABLE
    when encapsulated ones are no sequence of items (PS3.5 section A.4). A path that cannot be opened: OSError.
    """
    with _stream(raw) as f:
        opened = _open(f)
        ds, head = opened.header(TAGS, stop=_STOP)
        if head is not None and head[0] == _PIXELS:
            ds[_PIXELS] = _pixel_data(opened.reader.stream, head)
            if is_encapsulated(ds):  # by its transfer syntax alone, perhaps: then it may be anything
                deque(fragments(ds.PixelData), maxlen=0)
    return ds


def pixel_digest(ds: Dataset) -> str:
    """sha256 (hex) of the encoded pixel data: of native ones as stored, of encapsulated ones the fragments' bytes,
    without the offset table and the item headers; of no bytes where there are none."""
    digest = hashlib.sha256()
    if not ds.get("PixelData"):
        return digest.hexdigest()
    for part in fragments(ds.PixelData) if is_encapsulated(ds) else [ds.PixelData]:
        digest.update(part)
    return digest.hexdigest()


class SourceDataset(FileDataset):
    """What was read, every element converted; `encoded`: what the results need of it, as it came (`verbatim`)."""

    encoded: Dataset


@contextmanager
def _stream(raw: bytes | Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(raw, bytes):
        yield BytesIO(raw)
    elif isinstance(raw, Path):
        with raw.open("rb") as f:
            yield f
    else:
        yield raw


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A file whose data set is about to be read."""

    meta: FileMetaDataset
    reader: FlatReader
    bare: bool  # without preamble

    def header(self, wanted: frozenset[int], *, stop: int) -> tuple[SourceDataset, Head | None]:
        """The data set before `stop`, converted and judged, and the head of the element that it ends at."""
        if self.meta.get("MediaStorageSOPClassUID") == uids.MediaStorageDirectoryStorage:
            raise Rejected(Reason.DICOMDIR)
        found, head = self.reader.header(wanted, stop=stop)
        if head is None and self.reader.stream.read(1):
            raise Rejected(Reason.TRUNCATED, "the data set ends inside an element")
        if self.bare and not any(k in found for k in ("SOPClassUID", "SOPInstanceUID", "Modality", "Rows")):
            raise Rejected(Reason.NOT_DICOM)
        if not len(found):
            raise Rejected(Reason.TRUNCATED, "there is no data set after the file meta information")
        implicit, little = self.reader.implicit, self.reader.little
        _complete_meta(self.meta, implicit=implicit, little=little)
        encoded = verbatim(found, KEPT_TAGS)
        ds = SourceDataset("", found, preamble=b"\0" * 128, file_meta=self.meta)
        ds.encoded = encoded
        ds.set_original_encoding(implicit, little, found.original_character_set)
        settle(ds)
        for keyword in _MANDATORY:
            if not is_valid_uid(ds.get(keyword, "")):
                raise Rejected(Reason.MISSING_UID, keyword)
        return ds, head


def _open(f: BinaryIO) -> _Opened:
    stream = Stream(f)
    data, _ = stream.window(_LOOK)
    bare = data[128:132] != b"DICM"
    if bare and not _looks_like_data_set(data):
        raise Rejected(Reason.NOT_DICOM, "" if data else "empty")
    stream.forward(0 if bare else 132)
    meta = _read_meta(stream)
    syntax = meta.get("TransferSyntaxUID")
    if syntax == uids.DeflatedExplicitVRLittleEndian:
        stream = Stream(Inflated(stream))
    data, at = stream.window(8)
    first = data[at : at + 6]
    implicit = not is_explicit(first)
    little = first[1:2] == b"\0" or implicit if syntax is None else syntax != uids.ExplicitVRBigEndian
    return _Opened(meta=meta, reader=FlatReader(stream, implicit=implicit, little=little), bare=bare)


def _looks_like_data_set(data: bytes) -> bool:
    """A data set without preamble starts with an element of group 0002 or 0008 (PS3.10 section 7.1 is younger)."""
    if len(data) < 8:
        return False
    for order in "<>":
        group, number, vr, short = struct.unpack(f"{order}HH2sH", data[:8])
        if group not in (0x0002, 0x0008) or number > 0x0100:
            continue
        if vr in SHORT_VRS or vr in LONG_VRS:
            return vr in LONG_VRS or short < len(data)
        return order == "<" and int.from_bytes(data[4:8], "little") < min(len(data), 4096)
    return False


def _read_meta(stream: Stream) -> FileMetaDataset:
    """File Meta Information (PS3.10 section 7.1), always explicit little endian; empty where there is none."""
    found, head = FlatReader(stream, implicit=False, little=True).header(_META, stop=0x00030000)
    if head is not None:
        stream.forward(-12 if head[1] in LONG_VRS else -8)
    meta = FileMetaDataset(found)
    settle(meta)
    return meta


def _complete_meta(meta: FileMetaDataset, *, implicit: bool, little: bool) -> None:
    if not isinstance(meta.get("TransferSyntaxUID"), str):  # absent, empty, or several
        explicit = uids.ExplicitVRLittleEndian if little else uids.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uids.ImplicitVRLittleEndian if implicit else explicit


def settle(ds: Dataset) -> None:
    """Convert every element now, drop those that cannot be: whoever reads `ds` later meets no surprise."""
    for tag in list(ds.keys()):
        try:
            element = ds[tag]
            if element.VR == "SQ":
                ds[tag] = element  # its items learn the Pixel Representation, by which "US or SS" is told
                for item in element.value:
                    settle(item)
            elif element.VR == "PN":
                str(element.value)  # decodes the characters
            elif element.VR in ("IS", "DS"):  # unvalidated, pydicom keeps text that is no number
                for value in element.value if element.VM > 1 else [element.value or 0]:
                    float(value)
        except DAMAGE:
            ds.pop(tag, None)


def _pixel_data(stream: Stream, head: Head) -> DataElement:
    """The Pixel Data element (PS3.5 section 8), whose head was read."""
    _, vr, length = head
    if length == UNDEFINED:
        value = stream.rest()
        value = value[: walk(value)]
    else:
        value = stream.take(length)
    element = DataElement(_PIXELS, "OB" if vr == b"OB" else "OW", value, already_converted=True)
    element.is_undefined_length = length == UNDEFINED
    return element
