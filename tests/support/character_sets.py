"""Names in every character set that DICOM knows, as bytes, and what sources make of them.

The bytes are those of PS3.5 annexes H to K and of the code tables that PS3.3 section C.12.1.1.2 names, written down
here in hexadecimal: no codec, no library made them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """terms: Specific Character Set as encoded, none for an absent element; text: what a person reads of it."""

    terms: bytes
    value: bytes
    text: str | None = None


def _case(terms: str, value: str, text: str | None = None) -> Case:
    return Case(terms.encode("ascii"), bytes.fromhex(value), text)


ASCII_NAME = "41 64 61 6d 73 5e 4a 6f 68 6e"  # Adams^John
_KANJI = (
    "1b 24 42 3b 33 45 44 1b 28 42 5e 1b 24 42 42 40 4f 3a 1b 28 42 3d "
    "1b 24 42 24 64 24 5e 24 40 1b 28 42 5e 1b 24 42 24 3f 24 6d 24 26 1b 28 42"
)
_WANG = "57 61 6e 67 5e 58 69 61 6f 44 6f 6e 67 3d"  # Wang^XiaoDong=

# PS3.3 table C.12-2: one byte a character, no code extensions
SINGLE_BYTE = {
    "default": _case("", ASCII_NAME, "Adams^John"),
    "IR 100": _case("ISO_IR 100", "c4 6e 65 61 73 5e 52 fc 64 69 67 65 72", "Äneas^Rüdiger"),
    "IR 101": _case("ISO_IR 101", "57 61 b3 ea 73 61 5e 4c 65 63 68", "Wałęsa^Lech"),
    "IR 109": _case("ISO_IR 109", "c6 69 72 6b 61 fd 5e fe 61 6e 67 6f", "Ĉirkaŭ^ŝango"),
    "IR 110": _case("ISO_IR 110", "42 ba 72 7a 69 f1 b9 5e 4a e0 6e 69 73", "Bērziņš^Jānis"),
    "IR 144": _case("ISO_IR 144", "bb ee da 63 65 dc d1 79 70 d3", "Люкceмбypг"),
    "IR 127": _case("ISO_IR 127", "e2 c8 c7 e6 ea 5e e4 e6 d2 c7 d1", "قباني^لنزار"),
    "IR 126": _case("ISO_IR 126", "c4 e9 ef ed f5 f3 e9 ef f2", "Διονυσιος"),
    "IR 138": _case("ISO_IR 138", "f9 f8 e5 ef 5e e3 e1 e5 f8 e4", "שרון^דבורה"),
    "IR 148": _case("ISO_IR 148", "c7 61 f0 6c 61 72 5e de 75 6c 65", "Çağlar^Şule"),
    "IR 203": _case("ISO_IR 203", "bc 75 76 72 65 5e a6 69 6d 61 a4", "Œuvre^Šima€"),
    "IR 13": _case("ISO_IR 13", "d4 cf c0 de 5e c0 db b3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    "IR 166": _case("ISO_IR 166", "b9 d2 c1 5e cd d2 c3 d5", "นาม^อารี"),
}
# PS3.3 table C.12-3: one byte a character, with code extensions: after ESC - F and the like in G1
EXTENDED = {
    "2022 IR 6": _case("ISO 2022 IR 6", "1b 28 42 " + ASCII_NAME, "Adams^John"),
    "2022 IR 100": _case("\\ISO 2022 IR 100", "41 5e 1b 2d 41 4a e9 72 f4 6d 65", "A^Jérôme"),
    "2022 IR 101": _case("\\ISO 2022 IR 101", "41 5e 1b 2d 42 57 61 b3 ea 73 61", "A^Wałęsa"),
    "2022 IR 109": _case("\\ISO 2022 IR 109", "41 5e 1b 2d 43 c6 69 72 6b 61 fd", "A^Ĉirkaŭ"),
    "2022 IR 110": _case("\\ISO 2022 IR 110", "41 5e 1b 2d 44 4a e0 6e 69 73", "A^Jānis"),
    "2022 IR 144": _case("\\ISO 2022 IR 144", "41 5e 1b 2d 4c bb ee da 63 65 dc", "A^Люкceм"),
    "2022 IR 127": _case("\\ISO 2022 IR 127", "41 5e 1b 2d 47 e2 c8 c7 e6 ea", "A^قباني"),
    "2022 IR 126": _case("\\ISO 2022 IR 126", "41 5e 1b 2d 46 c4 e9 ef ed f5", "A^Διονυ"),
    "2022 IR 138": _case("\\ISO 2022 IR 138", "41 5e 1b 2d 48 f9 f8 e5 ef", "A^שרון"),
    "2022 IR 148": _case("\\ISO 2022 IR 148", "41 5e 1b 2d 4d c7 61 f0 6c 61 72", "A^Çağlar"),
    "2022 IR 203": _case("\\ISO 2022 IR 203", "41 5e 1b 2d 62 bc 75 76 72 65", "A^Œuvre"),
    "2022 IR 13": _case("\\ISO 2022 IR 13", "41 5e 1b 29 49 d4 cf c0 de", "A^ﾔﾏﾀﾞ"),
    "2022 IR 166": _case("\\ISO 2022 IR 166", "41 5e 1b 2d 54 b9 d2 c1", "A^นาม"),
    "Greek and Cyrillic": _case(
        "ISO 2022 IR 100\\ISO 2022 IR 144\\ISO 2022 IR 126",
        "44 69 6f 6e 79 73 69 6f 73 20 e9 5e 1b 2d 4c bb ee da 3d 1b 2d 46 c4 e9 ef ed", "Dionysios é^Люк=Διον",
    ),
}  # fmt: skip
# PS3.3 table C.12-4: several bytes a character, with code extensions; the examples of PS3.5 annexes H, I and K
MULTI_BYTE = {
    "H.3.1": _case("\\ISO 2022 IR 87", "59 61 6d 61 64 61 5e 54 61 72 6f 75 3d " + _KANJI,
                   "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "H.3.2": _case("ISO 2022 IR 13\\ISO 2022 IR 87", "d4 cf c0 de 5e c0 db b3 3d " + _KANJI.replace("28 42", "28 4a"),
                   "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "I.2": _case("\\ISO 2022 IR 149",
                 "48 6f 6e 67 5e 47 69 6c 64 6f 6e 67 3d 1b 24 29 43 fb f3 5e 1b 24 29 43 d1 ce d4 d7 3d "
                 "1b 24 29 43 c8 ab 5e 1b 24 29 43 b1 e6 b5 bf", "Hong^Gildong=洪^吉洞=홍^길동"),
    "I.3": _case("\\ISO 2022 IR 149",  # the long text's first two lines
                 "1b 24 29 43 54 68 65 20 31 73 74 20 6c 69 6e 65 20 69 6e 63 6c 75 64 65 73 20 b1 e6 b5 bf 2e 0d 0a "
                 "1b 24 29 43 54 68 65 20 32 6e 64 20 6c 69 6e 65 20 69 6e 63 6c 75 64 65 73 20 b1 e6 b5 bf 2c 20 "
                 "74 6f 6f 2e", "The 1st line includes 길동.\r\nThe 2nd line includes 길동, too."),
    "K.2": _case("\\ISO 2022 IR 58",
                 "5a 68 61 6e 67 5e 58 69 61 6f 44 6f 6e 67 3d 1b 24 29 41 d5 c5 5e 1b 24 29 41 d0 a1 b6 ab 3d",
                 "Zhang^XiaoDong=张^小东="),
    "K.3": _case("\\ISO 2022 IR 58",  # the long text's first two lines
                 "31 2e 1b 24 29 41 b5 da d2 bb d0 d0 ce c4 d7 d6 a1 a3 0d 0a "
                 "32 2e 1b 24 29 41 b5 da b6 fe d0 d0 ce c4 d7 d6 a1 a3", "1.第一行文字。\r\n2.第二行文字。"),
    "2022 IR 159": _case("ISO 2022 IR 6\\ISO 2022 IR 87\\ISO 2022 IR 159",
                         "41 5e 1b 24 28 44 30 21 1b 28 42 5e 1b 24 42 3b 33 1b 28 42", "A^丂^山"),
    "Japanese and Latin": _case("ISO 2022 IR 100\\ISO 2022 IR 87", "4a e9 72 f4 6d 65 3d 1b 24 42 3b 33 1b 28 42",
                                "Jérôme=山"),
}  # fmt: skip
# PS3.3 table C.12-5: several bytes a character, without code extensions; the examples of PS3.5 annex J
NO_EXTENSIONS = {
    "J.1": _case("ISO_IR 192", _WANG + "e7 8e 8b 5e e5 b0 8f e6 9d b1 3d", "Wang^XiaoDong=王^小東="),
    "J.2": _case("ISO_IR 192",  # the long text's first line
                 "54 68 65 20 66 69 72 73 74 20 6c 69 6e 65 20 69 6e 63 6c 75 64 65 73 e4 b8 ad e6 96 87 2e 0d 0a",
                 "The first line includes中文."),
    "J.3": _case("GB18030", _WANG + "cd f5 5e d0 a1 b6 ab 3d", "Wang^XiaoDong=王^小东="),
    "J.4": _case("GB18030",
                 "54 68 65 20 66 69 72 73 74 20 6c 69 6e 65 20 69 6e 63 6c 75 64 65 73 d6 d0 ce c4 2e 0d 0a",
                 "The first line includes中文."),
    "GB18030 of four bytes": _case("GB18030", "81 30 84 36 5e 82 31 a2 37", "¥^㫩"),
    "GBK": _case("GBK", _WANG + "cd f5 5e d0 a1 b6 ab 3d", "Wang^XiaoDong=王^小东="),
}  # fmt: skip
# 3D, 5C and 5E are = \ and ^ only where a byte is a character (PS3.5 section 6.1.2.5.3)
DELIMITERS_INSIDE = {
    "kanji with 3D": _case("\\ISO 2022 IR 87",
                           "44 65 67 75 63 68 69 3d 1b 24 42 3d 50 38 7d 1b 28 42 5e 1b 24 42 3d 55 3b 52 1b 28 42",
                           "Deguchi=出口^春子"),
    "kanji with 5C": _case("\\ISO 2022 IR 87", "41 3d 1b 24 42 30 5c 45 5c 1b 28 42", "A=移怒"),
    "kanji with 5E": _case("\\ISO 2022 IR 87", "41 3d 1b 24 42 30 5e 3b 33 1b 28 42", "A=緯山"),
    "supplementary kanji": _case("\\ISO 2022 IR 87\\ISO 2022 IR 159",
                                 "41 3d 1b 24 28 44 30 3d 30 5c 30 5e 1b 28 42", "A=亍伙伱"),
    "GBK with 5C and 5E": _case("GBK", "41 3d 81 5c 81 5e 95 5c", "A=乗乛昞"),
    "GB18030 with 5C": _case("GB18030", "41 3d 81 5c 95 5e", "A=乗昢"),
    "Shift JIS undeclared": _case("", "83 5c 83 5e 95 5c 3d 5e", None),
    "yen in the place of backslash": _case("ISO_IR 13", "41 5c 42 7e 5e c0 db b3", None),
}  # fmt: skip
# what nobody can decode for certain: misspelt, unknown, undeclared, broken
DIRTY = {
    "misspelt space": _case("ISO IR 100", "4d fc 6c 6c 65 72 5e 4a fc 72 67 65 6e", "Müller^Jürgen"),
    "misspelt hyphen": _case("ISO-IR 192", "4d c3 bc 6c 6c 65 72", "Müller"),
    "misspelt underscores": _case("\\ISO_2022_IR_87", "41 3d 1b 24 42 3b 33 1b 28 42", "A=山"),
    "lower case": _case("iso_ir 100", "4d fc 6c 6c 65 72", "Müller"),
    "no space": _case("ISO_IR100", "4d fc 6c 6c 65 72", "Müller"),
    "named by its repertoire": _case("ISO_IR 6", ASCII_NAME, "Adams^John"),
    "a codec's name": _case("UTF-8", "4d c3 bc 6c 6c 65 72", "Müller"),
    "unknown": _case("ISO_IR 999", "4d fc 6c 6c 65 72 5e ff fe", None),
    "rubbish": _case("\x01\x02", "4d fc 6c 6c 65 72", None),
    "too long a term": _case("ISO_IR 100 OR WHATEVER IT WAS", "4d fc 6c 6c 65 72", None),
    "undeclared UTF-8": _case("", "4d c3 bc 6c 6c 65 72 5e e5 b0 8f", "Müller^小"),
    "undeclared latin": _case("", "4d fc 6c 6c 65 72", None),
    "undeclared escapes": _case("", "41 3d 1b 24 42 3d 50 38 7d 1b 28 42", None),
    "Latin declared, UTF-8 sent": _case("ISO_IR 100", "4d c3 bc 6c 6c 65 72", None),
    "UTF-8 declared, Latin sent": _case("ISO_IR 192", "4d fc 6c 6c 65 72", None),
    "UTF-8 cut short": _case("ISO_IR 192", "e5 b0 8f e5 b0", None),
    "extensions with UTF-8": _case("ISO_IR 192\\ISO 2022 IR 87", "e5 b0 8f 1b 24 42 3b 33 1b 28 42", None),
    "an unknown escape sequence": _case("\\ISO 2022 IR 87", "41 3d 1b 24 7a 3b 33 1b 28 42", None),
    "an escape sequence of another set": _case("\\ISO 2022 IR 87", "41 3d 1b 24 29 43 fb f3 5e", None),
    "no way back": _case("\\ISO 2022 IR 87", "41 3d 1b 24 42 3b 33 45 44", None),
    "half a character": _case("\\ISO 2022 IR 87", "41 3d 1b 24 42 3b 33 45", None),
    "an escape at the end": _case("\\ISO 2022 IR 149", "41 3d 1b", None),
    "control characters": _case("ISO_IR 100", "01 02 09 0a 7f 80 9f 41", None),
    "four component groups": _case("ISO_IR 100", "41 5e 42 3d 43 5e 44 3d 45 3d 46 3d 47", None),
    "nine components": _case("", "41 5e 42 5e 43 5e 44 5e 45 5e 46 5e 47 5e 48 5e 49", None),
    "nothing but delimiters": _case("", "5e 3d 5c 3d 5e 5c", None),
    "spaces and NULs around": _case("ISO_IR 100", "20 20 4d fc 6c 00 20 00 20 20", None),
    "nothing but spaces": _case("", "20 20 20 20", ""),
    "longer than any VR": _case("ISO_IR 100", "fc " * 1024, "ü" * 1024),
    "several values": _case("", "57 41 52 44 5c 34 37 31 31", "WARD\\4711"),
    "longer than LO": _case(
        "", "48 4f 53 50 49 54 41 4c 2d 41 7c " + "30 31 32 33 34 35 36 37 38 39 " * 6, "HOSPITAL-A|" + "0123456789" * 6
    ),
    "of odd length": _case("ISO_IR 100", "4d fc 6c", "Mül"),
}
CASES = {**SINGLE_BYTE, **EXTENDED, **MULTI_BYTE, **NO_EXTENSIONS, **DELIMITERS_INSIDE, **DIRTY}
