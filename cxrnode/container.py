"""What kind of container a file is, by its content and never by its name.

Sources: POSIX.1-2017 pax (ustar), PKWARE APPNOTE 4.3, RFC 1952 (gzip), RFC 8878 (zstd), ECMA-119 (ISO 9660), and the
formats' own descriptions for the rest, as file(1) knows them.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from cxrnode import tar_members, zip_members

COMPRESSED = ("gzip", "bzip2", "xz", "zstd")  # one stream: a file, or a tar

_FIRST = 512
_HEAD = 36 * 1024  # an ISO 9660 image says at byte 32769 what it is
_MAGIC: dict[bytes, str] = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # without members
    b"PK\x07\x08": "zip",  # the first part of a split one, or one that was to be split
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z archive",
    b"Rar!\x1a\x07": "RAR archive",
    b"MSCF\0\0\0\0": "cabinet (CAB)",
    b"!<arch>\n": "ar archive",
    b"070701": "cpio archive",
    b"070702": "cpio archive",
    b"070707": "cpio archive",
    b"LZIP\x01": "lzip file",
    b"\x04\x22\x4d\x18": "lz4 file",
    b"\x5d\0\0": "LZMA file",
    b"\x89LZO\0\r\n": "lzop file",
    b"\xff\x06\0\0sNaPpY": "snappy file",
    b"StuffIt": "StuffIt archive",
    b"SIT!": "StuffIt archive",
    b"\x1f\x9d": "compress (.Z) file",
    b"\x60\xea": "ARJ archive",
    b"xar!\0\x1c": "xar archive",
    b"MSWIM\0\0\0": "Windows image (WIM)",
    b"hsqs": "squashfs image",
    b"KDMV": "disk image (VMDK)",
    b"QFI\xfb": "disk image (qcow2)",
    b"vhdxfile": "disk image (VHDX)",
}
_ELSEWHERE: tuple[tuple[int, bytes, str], ...] = (
    (2, b"-lh", "LHA archive"),
    (7, b"**ACE**", "ACE archive"),
    (0x8001, b"CD001", "ISO 9660 image"),
    (0x8001, b"BEA01", "UDF image"),
)
_CPIO_TYPES = {0o040000, 0o100000, 0o120000, 0o020000, 0o060000, 0o010000, 0o140000}


def recognise(f: BinaryIO) -> str | None:
    """The kind of container in a seekable stream, read from its start.

    "zip", "tar", one of COMPRESSED, or the name of a kind that is not opened. None where it is no container; a DICOM
    file is none, whatever stands in its preamble.
    """
    head = f.read(_FIRST)
    if head[128:132] == b"DICM":
        return None
    head += f.read(_HEAD - len(head))
    return _by_head(head) or _by_tail(f)


def _by_head(head: bytes) -> str | None:
    if tar_members.is_tar(head):
        return "tar"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:  # a skippable frame before the first one
        return "zstd"
    for at, magic, kind in _ELSEWHERE:
        if head.startswith(magic, at):
            return kind
    return "cpio archive" if _is_binary_cpio(head) else None


def is_empty_tar(f: BinaryIO) -> bool:
    """Two blocks of zeros end a tar, and are all of one without members; writers fill up to some kilobytes. It may as
    well be a film whose content was lost."""
    f.seek(0)
    head = f.read(_HEAD)
    return 1024 <= len(head) < _HEAD and len(head) % 512 == 0 and not any(head)


def _is_binary_cpio(head: bytes) -> bool:
    """The old format has a magic number of two bytes: the rest of its header must make sense too."""
    for order in "<>":
        if len(head) >= 26 and struct.unpack_from(f"{order}H", head)[0] == 0o070707:
            mode, length = struct.unpack_from(f"{order}6xH12xH", head)
            return mode & 0o170000 in _CPIO_TYPES and length > 1 and head[25 + length : 26 + length] == b"\0"
    return False


def _by_tail(f: BinaryIO) -> str | None:
    """A program (or anything else) with a zip behind it, as self-extracting archives are; an Apple disk image."""
    size = f.seek(0, 2)
    if size >= 512:
        f.seek(size - 512)
        if f.read(4) == b"koly":
            return "Apple disk image (DMG)"
    return "zip" if zip_members.is_zip(f) else None
