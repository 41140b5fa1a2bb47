"""Headers of random bytes: a report and a capture come out all the same, without a warning, and say what they must."""

from __future__ import annotations

import random

import pytest
from pydicom.datadict import dictionary_VR

from cxrnode.dicom.needed import KEPT
from cxrnode.errors import ResultError
from cxrnode.report.capture import build_capture
from cxrnode.report.check import COPIED
from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from tests.support.results import analysed, cam, check, context, header, preview

VRS = ("PN", "LO", "DA", "TM", "UN", "SQ", "IS", "DS", "CS", "AS", "UI", "US", "OB", "SH")
CHARACTER_SETS = (
    b"", b"ISO_IR 100", b"ISO_IR 192", b"\\ISO 2022 IR 87", b"ISO 2022 IR 13\\ISO 2022 IR 87 ", b"ISO_IR 144",
    b"GB18030 ", b"bogus ", b"ISO_IR 13 ", b"ISO 2022 IR 6\\ISO 2022 IR 149", b"ISO_IR 100\\ISO_IR 144 ", b"ISO_IR 127",
)  # fmt: skip
NEEDED = {"StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"}  # without them: missing_uid
KEYWORDS = sorted(KEPT - NEEDED)
WORDS = "Ünïcødé 山田^太郎=王 кириллица"


def _value(rng: random.Random) -> bytes:
    length = rng.choice((0, 1, 2, 5, 16, 17, 64, 65, 200))
    value = rng.choice((
        rng.randbytes(length),
        bytes(rng.choice(b"0123456789.^=\\:-+ \x1b$B(JAZaz") for _ in range(length)),
        WORDS.encode(rng.choice(("utf8", "latin_1", "shift_jis", "gb18030")), "replace"),
    ))  # fmt: skip
    return value + b" " * (len(value) % 2)


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_random_text_neither_raises_nor_warns(seed: int) -> None:
    rng = random.Random(seed)
    raw = {k: _text(rng, k) for k in sorted(KEPT - NEEDED) if rng.random() < 0.7}
    image = analysed(header({**raw, "SpecificCharacterSet": ("CS", rng.choice(CHARACTER_SETS))}))
    for ds in (build_sr([image], context()), build_capture(image, preview(64, 56), cam(), context(), long_side=256)):
        check(ds, [image])
        check(decode(encode(ds)), [image])


@pytest.mark.parametrize("seed", range(1, 40, 2))
def test_random_bytes_of_any_kind_are_copied_or_held_back(seed: int) -> None:
    rng = random.Random(seed)
    raw = {k: (rng.choice(VRS), _value(rng)) for k in sorted(KEPT - NEEDED) if rng.random() < 0.7}
    raw |= {k: _text(rng, k) for k in COPIED if k in raw}
    broken = rng.choice(COPIED)
    raw[broken] = (rng.choice(("US", "OB")), b"\1\0")
    with pytest.raises(
        ResultError, match=f"{broken} of the source is no (text|sequence), so it cannot be copied whole"
    ):
        build_sr([analysed(header(raw))], context())


def _text(rng: random.Random, keyword: str) -> tuple[str, bytes]:
    if dictionary_VR(keyword) == "SQ":
        return "SQ", b""
    return rng.choice(("PN", "LO", "DA", "UN", "IS", "CS", "SH")), _value(rng)
