"""A node at work on studies whose every patient attribute is a token, and all that it writes meanwhile.

Studies that are good, sent twice, of one UID with other pixels, damaged, lateral, of values that break their VR, and
some that a destination refuses while it quotes the patient. Every logger of every process is at DEBUG.
"""

from __future__ import annotations

import random
import socket
import urllib.error
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from cxrnode.dicom.requestor import TidyAE
from tests.support.awaiting import await_true
from tests.support.certificates import Authority
from tests.support.make_dicom import chest, to_bytes
from tests.support.node import SENDER, Node
from tests.support.orthanc import free_port

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
LOUD = """
import logging, warnings
import pydicom.config
pydicom.config.debug(True, default_handler=False)
for name in "pydicom pynetdicom highdicom sqlalchemy sqlalchemy.engine sqlalchemy.pool PIL alembic".split():
    logging.getLogger(name).setLevel(logging.DEBUG)
warnings.simplefilter("always")
warnings.simplefilter("ignore", ResourceWarning)  # of the interpreter's end, when nobody listens any more
"""
_WORDS = (
    "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDs", "PatientAddress", "PatientComments",
    "PatientMotherBirthName", "AccessionNumber", "ReferringPhysicianName", "OperatorsName", "StudyID",
    "StudyDescription", "InstitutionName", "RequestingPhysician",
)  # fmt: skip


class Tokens:
    """Random words that occur nowhere else, the same in every run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.made: list[str] = []

    def word(self, length: int = 12, alphabet: str = "BCDFGHJKLMNPQRSTVWXZ") -> str:
        self.made.append("".join(self._random.choices(alphabet, k=length)))
        return self.made[-1]

    def name(self, accents: str = "") -> str:
        return f"{self.word()}{accents}^{self.word()}{accents}"

    def birth_date(self) -> str:
        date = f"19{self._random.randrange(10, 99)}{self._random.randrange(10, 13)}{self._random.randrange(10, 29)}"
        self.made += [date, f"{date[:4]}-{date[4:6]}-{date[6:]}"]
        return date

    def patient(self, accents: str = "") -> dict[str, Any]:
        """Overrides of a `chest`."""
        other = Dataset()
        other.PatientID, other.TypeOfPatientID = self.word(), "TEXT"
        request = Dataset()
        request.RequestedProcedureID, request.RequestedProcedureDescription = self.word(), self.word()
        values = {keyword: self.word() for keyword in _WORDS}
        names = {k: self.name(accents) for k in _WORDS if k.endswith(("Name", "Physician"))}
        more = {"OtherPatientIDsSequence": [other], "RequestAttributesSequence": [request]}
        return values | names | more | {"PatientBirthDate": self.birth_date()}


def spellings(token: str) -> set[bytes]:
    """As a careless line of a log might write it, whole."""
    texts = {token, token.lower(), token.title(), quote(token)}
    raw = {t.encode(code) for t in texts for code in ("latin-1", "utf-8", "utf-16-le")}
    hexed = {h for r in raw for h in (r.hex().encode(), r.hex().upper().encode(), r.hex(" ").encode())}
    inner = b64encode(token.encode())[:-4]  # of what begins with it
    return raw | hexed | {inner}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a run left behind."""

    node: Node
    tokens: tuple[str, ...]
    log: bytes  # all that its processes wrote to stdout and stderr
    pages: dict[str, bytes]  # /metrics and /readyz at the end
    before_kill: bytes  # /metrics before its intake was killed
    statuses: dict[str, int]  # of C-STORE, by what was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A file to send as it is."""

    what: str
    data: bytes
    sop_class: str
    syntax: str

    def but(self, what: str, data: bytes) -> Film:
        return replace(self, what=what, data=data)


def film(what: str, number: int, patient: dict[str, Any], *, seed: int | None = None, **how: Any) -> Film:
    root = f"1.2.826.0.1.77.{number}"
    with disable_value_validation():
        uids = (root, f"{root}.1", f"{root}.1.1")
        ds = chest(160, 140, seed=seed or number, uids=uids, overrides=patient, **how)
        sop_class, syntax = str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID)
        return Film(what=what, data=to_bytes(ds), sop_class=sop_class, syntax=syntax)


def films(tokens: Tokens) -> Iterator[Film]:
    yield (good := film("good", 1, tokens.patient()))
    yield good.but("twice", good.data)
    yield film("other pixels", 1, tokens.patient(), seed=99)
    yield film("accents", 2, tokens.patient("\xe9\xdf") | {"SpecificCharacterSet": "ISO_IR 100"})
    known = film("known character set", 3, tokens.patient())
    yield known.but("unknown character set", known.data.replace(b"ISO_IR 192", b"ISO_IR 999"))
    yield film("lateral", 4, tokens.patient(), view="LL", kind="DX")
    yield film("other modality", 5, tokens.patient() | {"Modality": "MR"})
    whole = film("whole", 6, tokens.patient())
    yield whole.but("cut in its pixels", whole.data[: len(whole.data) * 2 // 3])
    yield whole.but("cut in its header", whole.data[:900])
    squeezed = film("whole", 7, tokens.patient(), syntax="jpeg_lossless")
    at = squeezed.data.index(b"\xff\xd8\xff") + 3
    noise = (tokens.word().encode() * 9999)[: len(squeezed.data) - at - 8]
    yield squeezed.but("no JPEG", squeezed.data[:at] + noise + squeezed.data[-8:])
    yield from broken(tokens)


def broken(tokens: Tokens) -> Iterator[Film]:
    """Values that break their VR: DS, AS, DA, UI."""
    patient = {"PatientSize": "1.87654321", "PatientWeight": "87.6543219", "PatientAge": "087Y"}
    sound = film("sound", 8, tokens.patient() | patient)
    data = sound.data
    for value in (*patient.values(), "20240102"):
        assert value.encode() in data
        data = data.replace(value.encode(), tokens.word(len(value)).encode())
    yield sound.but("no number, no age, no date", data)
    sound = film("sound", 9, tokens.patient())
    study = b"UI\x10\x001.2.826.0.1.77.9"
    assert study in sound.data
    yield sound.but("no UID", sound.data.replace(study, b"UI\x10\x00" + tokens.word(16).encode()))


def send_raw(port: int, sent: Film, folder: Path, *, ae_title: str = SENDER) -> int:
    """C-STORE the bytes as they are; the status, or -1 where there was no association."""
    path = folder / "sent.dcm"
    path.write_bytes(sent.data)
    contexts = [build_context(sent.sop_class, sent.syntax)]
    assoc = TidyAE(ae_title=ae_title).associate("127.0.0.1", port, ae_title="CXRNODE", contexts=contexts)
    if not assoc.is_established:
        return -1
    try:
        return int(getattr(assoc.send_c_store(path), "Status", -2))
    finally:
        assoc.release()


@contextmanager
def pacs(ae_title: str, *, quotes: bool = False) -> Iterator[int]:
    """A destination, by its port; one that `quotes` refuses everything and says whose it is."""

    def store(event: Any) -> Dataset:
        answer = Dataset()
        answer.Status = 0xC123 if quotes else 0x0000
        if quotes:
            ds = event.dataset
            answer.ErrorComment = f"cannot file {ds.PatientID} of {str(ds.PatientName).partition('^')[0]}"[:64]
        return answer

    ae, port = AE(ae_title=ae_title), free_port()
    for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
        ae.add_supported_context(sop_class)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None  # it does not block
    try:
        yield port
    finally:
        server.shutdown()


def leaks(tokens: Iterable[str], written: bytes) -> list[str]:
    """The tokens that stand in it, in whatever spelling, with what stands around them."""
    found = []
    for token in tokens:
        for spelling in spellings(token):
            at = written.find(spelling)
            if at >= 0:
                found.append(f"{token}: ...{written[max(0, at - 200) : at + 100]!r}")
                break
    return found


def settled(node: Node) -> bool:
    """Nothing is left to do but for the destination that is away."""
    (open_jobs,) = node.rows("SELECT count(*) FROM job WHERE state <> 'reported'")
    (waiting,) = node.rows("SELECT count(*) FROM delivery WHERE state = 'pending' AND destination <> 'away'")
    return not open_jobs[0] and not waiting[0]


def garbage(port: int, token: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        peer.sendall(token.encode() * 20)
        peer.recv(64)


def watch(folder: Path, seed: int) -> Watched:
    """Run a node on all of it. The caller's environment must make it LOUD."""
    tokens = Tokens(seed)
    with pacs("GOOD") as good, pacs("QUOTES", quotes=True) as quoting:
        away = ("away", "AWAY", free_port())
        mine = Authority(folder).issue("node")
        tls = f'port = {free_port()}\ncertificate = "{mine.certificate}"\nkey = "{mine.key}"'
        node = Node(
            folder=folder / "node", destinations=[("good", "GOOD", good), ("quotes", "QUOTES", quoting), away],
            commitment=False, quiet_s=0.1,
            extra=f'[log]\nformat = "json"\nlevel = "debug"\n[receive.tls]\n{tls}\nrequire_client_certificate = false',
        )  # fmt: skip
        try:
            node.start()
            sent = list(films(tokens))
            statuses = {f.what: send_raw(node.port, f, folder) for f in sent}
            assert send_raw(node.port, sent[0], folder, ae_title="STRANGER") == -1
            garbage(node.port, tokens.word())
            try:
                node.http(f"/{tokens.word()}")
            except urllib.error.HTTPError as e:
                e.close()
            await_true(lambda: settled(node), lambda: node.log[-3000:])
            before_kill = node.http("/metrics")
            node.stages()["intake"].kill()
            await_true(lambda: not node.readiness()["ready"], lambda: node.log[-3000:])
            await_true(lambda: node.readiness()["ready"], lambda: node.log[-3000:])
            assert send_raw(node.port, sent[0], folder) == 0
            pages = {page: node.http(page) for page in ("/metrics", "/readyz")}
            assert node.stop() == 0
        finally:
            node.kill()
        written = (node.folder / "log").read_bytes()
    return Watched(
        node=node, tokens=tuple(tokens.made), log=written, pages=pages, before_kill=before_kill, statuses=statuses
    )  # fmt: skip
