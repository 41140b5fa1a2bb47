"""From bytes to a data set: recognised by content, never by name, and never a traceback whatever the bytes.

The parser is pydicom's; what is added here is the judgement that it leaves out: whether the bytes are DICOM at all,
whether an element is shorter than it says, and whether every element that is kept can be read.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import DataElement, Dataset, FileDataset
from pydicom import uid as uids
from pydicom.config import disable_value_validation
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset

from cxrnode.dicom.fragments import fragments, is_encapsulated, walk
from cxrnode.dicom.uids import is_valid_uid
from cxrnode.errors import Rejected
from cxrnode.types import Reason

# what pydicom's parser and converters raise on damaged bytes; a failing read of the file itself is not among them,
# because they only ever see memory
DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, BytesLengthException, EOFError, InvalidDicomError, LookupError,
    MemoryError, NotImplementedError, OSError, RecursionError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
_PREFIXES = (1 << 16, 1 << 20, 1 << 24, -1)  # bytes read until the header fits: 64 KiB holds nearly all
_SETTINGS = threading.RLock()
_INFLATED_MAX = 1 << 30  # bytes; a deflated data set beyond is no radiograph
_PIXELS = 0x7FE00010
_STOP = 0x7FE00008  # Float Pixel Data, the first of the elements that hold pixels (PS3.3 C.7.6.24)
_UNDEFINED = 0xFFFFFFFF
_MANDATORY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US"}
)  # fmt: skip
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})


def read_header(f: BinaryIO) -> Dataset:
    """The data set up to its pixel data, read from the start of a seekable stream; the pixel data stay unread.

    Raises Rejected: NOT_DICOM (the content is something else), TRUNCATED (it ends inside an element), MISSING_UID
    (Study, Series, SOP Instance or SOP Class UID absent, empty or invalid as of PS3.5 section 9.1), UNREADABLE_FILE
    (DICOM, but damaged so that it does not parse), DICOMDIR.
    """
    with tolerant():
        return _finish(_parse_stream(f))


def read_instance(raw: bytes | Path) -> Dataset:
    """The whole data set of a file (path) or of its content (bytes), pixel data as encoded.

    Raises Rejected as `read_header` does, and TRUNCATED when the pixel data are shorter than declared, UNDECODABLE
    when encapsulated ones are no sequence of items (PS3.5 section A.4). A path that cannot be opened: OSError.
    """
    with BytesIO(raw) if isinstance(raw, bytes) else raw.open("rb") as f, tolerant():
        parsed = _parse_stream(f)
        ds = _finish(parsed)
        if parsed.pixels_at is not None:
            _attach_pixels(ds, parsed, f)
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


@contextmanager
def tolerant() -> Iterator[None]:
    """pydicom without value validation, warnings and logging: it quotes values, which may be patient data, in both.

    These settings are the process's, so one thread has them at a time.
    """
    log = logging.getLogger("pydicom")  # has a handler that drops all: nothing goes past it now
    with _SETTINGS:
        propagated, log.propagate = log.propagate, False
        try:
            with disable_value_validation(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            log.propagate = propagated


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    dataset: Dataset
    meta: FileMetaDataset
    implicit: bool
    little: bool
    pixels_at: int | None  # offset of the Pixel Data element in the stream (of the inflated bytes in a deflated one)
    inflated: bytes | None = None


class _Incomplete(Exception):  # noqa: N818 (a signal inside this module)
    """The bytes at hand do not hold the whole header."""

    def __init__(self, rejection: Rejected) -> None:
        super().__init__(str(rejection))
        self.rejection = rejection


def _parse_stream(f: BinaryIO) -> _Parsed:
    data = b""
    for size in _PREFIXES:
        data += f.read(size - len(data) if size > 0 else -1)
        whole = size < 0 or len(data) < size
        try:
            return _parse(data, whole=whole)
        except _Incomplete as incomplete:
            if whole:
                raise incomplete.rejection from None
    raise AssertionError("the last prefix is the whole stream")


def _parse(data: bytes, *, whole: bool) -> _Parsed:
    """Raises Rejected where more bytes would not help, _Incomplete where they might."""
    if data[128:132] == b"DICM":
        start = 132
    elif _looks_like_data_set(data):
        start = 0
    else:
        raise Rejected(Reason.NOT_DICOM, "empty" if not data else "")
    meta, at = _read_meta(data, start)
    syntax = meta.get("TransferSyntaxUID")
    inflated = None
    if syntax == uids.DeflatedExplicitVRLittleEndian:
        inflated, at = _inflate(data[at:]), 0
    body = data if inflated is None else inflated
    implicit, little = _encoding(syntax, body[at : at + 6])
    dataset, end, pixels = _read_elements(body, at, implicit=implicit, little=little)
    if not pixels and (not whole or len(body) > end):
        raise _Incomplete(Rejected(Reason.TRUNCATED, "the data set ends inside an element"))
    if not len(dataset):
        raise _Incomplete(Rejected(Reason.TRUNCATED, "there is no data set after the file meta information"))
    if start == 0 and not any(k in dataset for k in ("SOPClassUID", "SOPInstanceUID", "Modality", "Rows")):
        raise Rejected(Reason.NOT_DICOM)
    _complete_meta(meta, implicit=implicit, little=little)
    return _Parsed(
        dataset=dataset, meta=meta, implicit=dataset.original_encoding[0] or False, little=little,
        pixels_at=end if pixels else None, inflated=inflated,
    )  # fmt: skip


def _looks_like_data_set(data: bytes) -> bool:
    """A data set without preamble starts with an element of group 0002 or 0008 (PS3.10 section 7.1 is younger)."""
    if len(data) < 8:
        return False
    for order in "<>":
        group, number, vr, short = struct.unpack(f"{order}HH2sH", data[:8])
        if group not in (0x0002, 0x0008) or number > 0x0100:
            continue
        if vr in _SHORT_VRS or vr in _LONG_VRS:
            return vr in _LONG_VRS or short < len(data)
        return order == "<" and int.from_bytes(data[4:8], "little") < min(len(data), 4096)
    return False


def _read_meta(data: bytes, start: int) -> tuple[FileMetaDataset, int]:
    """File Meta Information (PS3.10 section 7.1), always explicit little endian; empty where there is none."""
    f = BytesIO(data)
    f.seek(start)
    try:
        raw = read_dataset(f, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
        _check_lengths(raw)
        meta = FileMetaDataset(raw)
        settle(meta)
    except DAMAGE as error:
        raise _damaged(error) from None
    return meta, f.tell()


def _inflate(data: bytes) -> bytes:
    """PS3.5 section A.5."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, _INFLATED_MAX)
    except zlib.error:
        raise Rejected(Reason.UNREADABLE_FILE, "the deflated data set is damaged") from None
    if inflater.unconsumed_tail:
        raise Rejected(Reason.UNREADABLE_FILE, "the deflated data set is too large")
    if not inflater.eof:
        raise _Incomplete(Rejected(Reason.TRUNCATED, "the deflated data set ends early"))
    return inflated


def _encoding(syntax: str | None, first: bytes) -> tuple[bool, bool]:
    """(implicit VR, little endian), from the transfer syntax or, without one, from the first element."""
    if syntax is None:
        if first[4:6] not in _SHORT_VRS | _LONG_VRS:
            return True, True
        return False, first[1:2] == b"\0"
    if syntax == uids.ImplicitVRLittleEndian:
        return True, True
    return False, syntax != uids.ExplicitVRBigEndian


def _read_elements(data: bytes, at: int, *, implicit: bool, little: bool) -> tuple[Dataset, int, bool]:
    """The elements before the pixel data, the offset where reading ended, and whether pixel data start there."""
    f = BytesIO(data)
    f.seek(at)
    stopped: list[int] = []

    def stop(tag: int, _vr: str | None, _length: int) -> bool:
        if tag >= _STOP:
            stopped.append(tag)
        return tag >= _STOP

    try:
        dataset = read_dataset(f, implicit, little, stop_when=stop)
    except DAMAGE as error:
        raise _damaged(error) from None
    _check_lengths(dataset)
    if stopped:
        return dataset, f.tell(), stopped[-1] == _PIXELS
    return dataset, f.tell(), False


def _damaged(error: Exception) -> _Incomplete:
    if isinstance(error, _Incomplete):
        return error
    if isinstance(error, EOFError | OSError | struct.error):  # what pydicom raises when it runs out of bytes
        return _Incomplete(Rejected(Reason.TRUNCATED, "the data set ends inside an element"))
    return _Incomplete(Rejected(Reason.UNREADABLE_FILE, f"the data set is damaged ({type(error).__name__})"))


def _check_lengths(dataset: Dataset) -> None:
    """pydicom hands out a value that the end of the file cut short without a word."""
    for tag in dataset.keys():  # noqa: SIM118 (iterating the data set itself would convert its elements)
        element = dataset.get_item(tag, keep_deferred=True)
        length = getattr(element, "length", _UNDEFINED)  # a converted element has none
        if length != _UNDEFINED and len(element.value or b"") < length:
            raise _Incomplete(Rejected(Reason.TRUNCATED, "the data set ends inside an element"))


def _complete_meta(meta: FileMetaDataset, *, implicit: bool, little: bool) -> None:
    if not isinstance(meta.get("TransferSyntaxUID"), str):  # absent, empty, or several
        explicit = uids.ExplicitVRLittleEndian if little else uids.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uids.ImplicitVRLittleEndian if implicit else explicit


def _finish(parsed: _Parsed) -> FileDataset:
    if parsed.meta.get("MediaStorageSOPClassUID") == uids.MediaStorageDirectoryStorage:
        raise Rejected(Reason.DICOMDIR)
    ds = FileDataset(
        "", parsed.dataset, preamble=b"\0" * 128, file_meta=parsed.meta, is_implicit_VR=parsed.implicit,
        is_little_endian=parsed.little,
    )  # fmt: skip
    ds.set_original_encoding(parsed.implicit, parsed.little, parsed.dataset.original_character_set)
    settle(ds)
    for keyword in _MANDATORY:
        if not is_valid_uid(ds.get(keyword, "")):
            raise Rejected(Reason.MISSING_UID, keyword)
    return ds


def settle(ds: Dataset) -> None:
    """Convert every element now, drop those that cannot be: whoever reads `ds` later meets no surprise."""
    for tag in list(ds.keys()):
        try:
            element = ds[tag]
            if element.VR == "SQ":
                for item in element.value:
                    settle(item)
            elif element.VR == "PN":
                str(element.value)  # decodes the characters
            elif element.VR in ("IS", "DS"):  # unvalidated, pydicom keeps text that is no number
                for value in element.value if element.VM > 1 else [element.value or 0]:
                    float(value)
        except DAMAGE:
            ds.pop(tag, None)


def _attach_pixels(ds: FileDataset, parsed: _Parsed, f: BinaryIO) -> None:
    """Read the Pixel Data element (PS3.5 section 8) at `parsed.pixels_at`."""
    source = f if parsed.inflated is None else BytesIO(parsed.inflated)
    source.seek(parsed.pixels_at or 0)
    head = source.read(8)
    order = "<" if parsed.little else ">"
    vr, tail = ("OW", head[4:]) if parsed.implicit else (head[4:6].decode("latin-1"), source.read(4))
    if len(tail) < 4:
        raise Rejected(Reason.TRUNCATED, "the file ends before the pixel data")
    (length,) = struct.unpack(f"{order}L", tail)
    if length == _UNDEFINED:
        value = source.read()
        value = value[: walk(value)]
    else:
        value = source.read(length)
        if len(value) < length:
            raise Rejected(Reason.TRUNCATED, f"{len(value)} of {length} bytes of pixel data")
    element = DataElement(_PIXELS, vr if vr in ("OB", "OW") else "OW", value, already_converted=True)
    element.is_undefined_length = length == _UNDEFINED
    ds[_PIXELS] = element
