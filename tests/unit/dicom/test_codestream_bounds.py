"""What codestreams say of themselves, marker by marker: ITU-T T.81 (JPEG), T.87 (JPEG-LS), T.800 (JPEG 2000)."""

from __future__ import annotations

import struct

import pytest
from pydicom import uid as uids

from cxrnode.dicom.codestream import Codestream, describe

EOI, SOI = b"\xff\xd9", b"\xff\xd8"


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(
    sof: int = 0xC3, *before: bytes, precision: int = 12, components: int = 1, near: int = 0, coded: int = 7500
) -> bytes:
    frame = segment(sof, struct.pack(">BHHB", 12, 300, 200, components))
    scan = segment(0xDA, bytes([components, *([1, 0] * components), near, 0, 0]))
    return SOI + b"".join(before) + frame + scan + bytes(coded) + EOI


def j2k(
    *, capabilities: int = 0, left: int = 0, top: int = 0, tile: tuple[int, int] = (200, 300), depth: int = 11,
    wavelet: int = 1,
) -> bytes:  # fmt: skip
    size = struct.pack(">HLLLLLLLLH", capabilities, 200, 300, left, top, *tile, 0, 0, 1) + bytes([depth, 1, 1])
    style = bytes([0, 0, 0, 1, 0, 5, 4, 4, 0, wavelet])
    return b"\xff\x4f" + segment(0x51, size) + segment(0x64, b"\0\1comment") + segment(0x52, style) + b"\xff\x90" + EOI


def said(data: bytes) -> Codestream:
    found = describe(data)
    assert found
    return found


@pytest.mark.parametrize(
    ("sof", "syntax", "lossy"),
    [(0xC0, uids.JPEGBaseline8Bit, True), (0xC1, uids.JPEGExtended12Bit, True), (0xC2, uids.JPEGExtended12Bit, True),
     (0xC3, uids.JPEGLossless, False), (0xF7, uids.JPEGLSLossless, False)],
)  # fmt: skip
def test_the_frame_header_names_the_process(sof: int, syntax: uids.UID, lossy: bool) -> None:
    assert said(jpeg(sof)) == Codestream(syntax=syntax, rows=300, columns=200, components=1, precision=12, lossy=lossy)
    assert said(jpeg(sof, components=3)).components == 3


@pytest.mark.parametrize(
    ("sof", "least"),  # bytes for 300 x 200 samples, or 38 x 25 blocks, less the scan's own header and the end marker
    [(0xC3, 7500 - 12), (0xC0, 238 - 12), (0xC1, 238 - 12), (0xC2, 0), (0xF7, 0)],
)
def test_a_scan_is_no_shorter_than_its_pixels_can_be_coded(sof: int, least: int) -> None:
    assert said(jpeg(sof, coded=least)).complete
    assert least == 0 or not said(jpeg(sof, coded=least - 1)).complete
    assert said(jpeg(sof, components=3, coded=0)).complete  # how they are subsampled is not looked at


@pytest.mark.parametrize(("near", "lossy"), [(0, False), (1, True)])
@pytest.mark.parametrize("components", [1, 3])
def test_jpeg_ls_loses_what_near_allows(near: int, lossy: bool, components: int) -> None:
    assert said(jpeg(0xF7, near=near, components=components)).lossy is lossy
    assert said(jpeg(0xC3, near=near, components=components)).lossy is False  # there it is a predictor


@pytest.mark.parametrize(
    ("adobe", "transformed"),
    [(b"Adobe" + bytes(6) + b"\0", False), (b"Adobe" + bytes(6) + b"\1", True), (b"Adobe" + bytes(5), None),
     (b"Other" + bytes(6) + b"\1", None)],
)  # fmt: skip
def test_an_adobe_segment_says_whether_colours_were_transformed(adobe: bytes, transformed: bool | None) -> None:
    assert said(jpeg(0xC0, segment(0xEE, adobe))).transformed is transformed
    assert said(jpeg(0xC0, segment(0xE0, b"Adobe" + bytes(6) + b"\1"))).transformed is None


def test_markers_without_a_segment_and_fill_bytes_are_passed_over() -> None:
    plain = said(jpeg())
    for before in (b"\xff\x01", b"\xff\xd0", b"\xff\xd7", b"\xff\xff\xff\x01", segment(0xFE, b"a comment")):
        assert said(jpeg(0xC3, before)) == plain


@pytest.mark.parametrize(("padding", "complete"), [(0, True), (1022, True), (1023, False)])
@pytest.mark.parametrize("stream", [jpeg(), j2k()])
def test_a_kilobyte_of_padding_may_follow_the_end(stream: bytes, padding: int, complete: bool) -> None:
    assert said(stream + bytes(padding)).complete is complete
    assert said(stream[:-2]).complete is False


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"", False), (SOI, False), (jpeg()[:14], False), (b"\xff\xd9" + jpeg()[2:], False), (j2k()[:40], False),
     (b"\0\0\0\x0cjP  " + bytes(20) + j2k(), True), (b"\0\0\0\x0cjP  " + bytes(4084) + j2k(), True),
     (b"\0\0\0\x0cjP  " + bytes(4085) + j2k(), False)],
    ids=range(8),
)  # fmt: skip
def test_where_a_codestream_is_looked_for(data: bytes, found: bool) -> None:
    assert (describe(data) is not None) is found


def test_jpeg_2000_says_its_size_and_depth() -> None:
    assert said(j2k()) == Codestream(
        syntax=uids.JPEG2000, rows=300, columns=200, components=1, precision=12, levels=5, lossy=False
    )
    assert (said(j2k(depth=0x8F)).precision, said(j2k(depth=0x8F)).signed) == (16, True)
    assert (said(j2k(depth=0)).precision, said(j2k(depth=0)).signed) == (1, False)
    assert said(j2k(wavelet=0)).lossy is True


@pytest.mark.parametrize(
    ("capabilities", "syntax"),
    [(0, uids.JPEG2000), (0x3FFF, uids.JPEG2000), (0x4000, uids.HTJ2K), (0xC000, uids.HTJ2K)],
)
def test_bit_fourteen_is_high_throughput(capabilities: int, syntax: uids.UID) -> None:
    assert said(j2k(capabilities=capabilities)).syntax == syntax


@pytest.mark.parametrize(
    ("tile", "tiles"),
    [((200, 300), 1), ((199, 300), 2), ((200, 299), 2), ((100, 100), 6), ((99, 100), 9), ((0, 300), 200)],
)
def test_tiles_are_counted_with_those_that_are_cut(tile: tuple[int, int], tiles: int) -> None:
    assert said(j2k(tile=tile)).tiles == tiles


def test_an_image_that_is_offset_is_not_halved() -> None:
    assert (said(j2k(left=1)).levels, said(j2k(left=1)).columns) == (0, 199)
    assert (said(j2k(top=1)).levels, said(j2k(top=1)).rows) == (0, 299)


def test_what_a_tile_says_of_itself_counts_for_no_other() -> None:
    """COD stands in the main header; in a tile's own header it is that tile's."""
    whole = j2k()
    at = whole.index(b"\xff\x52")
    of_tile = whole[:at] + segment(0x90, bytes(8)) + whole[at:]
    assert (said(of_tile).levels, said(of_tile).lossy) == (0, False)
