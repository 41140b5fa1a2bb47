"""What breaks a listener built on pynetdicom's reactor, one test a trap; after each, others are served at once."""

from __future__ import annotations

import os
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cxrnode.dicom import scp
from cxrnode.dicom import storing as storing_module
from cxrnode.dicom.negotiation import MAX_PDU_BYTES
from tests.support.awaiting import await_true
from tests.support.hostile import KINDS
from tests.support.make_dicom import SOP_CLASSES, SYNTAXES, chest, to_bytes
from tests.support.receiving import (
    ANSWER_S,
    HOST,
    PACS,
    Node,
    associate_rq,
    associated,
    c_store_rq,
    command,
    echo,
    p_data,
    running_node,
    send,
)

CR = str(SOP_CLASSES["CR"])
EXPLICIT = str(SYNTAXES["explicit"])
STORAGE_RQ = associate_rq((1, CR, EXPLICIT))
ABORT, ACCEPT, REJECT = 7, 2, 3
soon = partial(await_true, seconds=10, every_s=0.01)  # less than the listener's own patience


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who would be held up by another would be until that one is dropped: longer than he waits for an answer."""
    monkeypatch.setattr(scp, "_SILENCE_S", 2 * ANSWER_S)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running_node(tmp_path / "var", idle_timeout_s=2 * ANSWER_S) as node:
        yield node


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node that waits a second and a half for anything."""
    monkeypatch.setattr(scp, "_SILENCE_S", 1.5)
    with running_node(tmp_path / "var", idle_timeout_s=1.5) as node:
        yield node


def served(node: Node, **how: Any) -> None:
    """A C-ECHO and a real C-STORE work, and nothing lies about afterwards."""
    before = len(node.rows())
    seed = 1000 + before
    assert echo(node.port, **how) == 0
    assert send(node.port, chest(64, 64, seed=seed), **how) == [0]
    assert len(node.rows()) == before + 1
    assert not list((node.folder / "incoming").iterdir())
    assert len(node.files()) == len(node.rows())


@contextmanager
def raw(node: Node, first: bytes = b"", source: str = HOST) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, node.port), timeout=10, source_address=(source, 0)) as peer:
        peer.sendall(first)
        yield peer


def read_pdu(peer: socket.socket) -> tuple[int, bytes]:
    """The next PDU, type 0 when the connection ended."""
    head = _read(peer, 6)
    if len(head) < 6:
        return 0, b""
    kind, _, length = struct.unpack(">BBL", head)
    return kind, _read(peer, length)


def _read(peer: socket.socket, count: int) -> bytes:
    data = b""
    try:
        while len(data) < count and (part := peer.recv(count - len(data))):
            data += part
    except ConnectionResetError:
        pass
    return data


@contextmanager
def storing(node: Node, source: str = HOST) -> Iterator[socket.socket]:
    with raw(node, STORAGE_RQ, source) as peer:
        assert read_pdu(peer)[0] == ACCEPT
        yield peer


def status_of(answer: tuple[int, bytes]) -> int:
    kind, content = answer
    assert kind == 4
    at = content.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return int.from_bytes(content[at : at + 2], "little")


def body(ds: Dataset) -> bytes:
    """The encoded data set alone."""
    raw_file = to_bytes(ds)
    return raw_file[144 + struct.unpack_from("<L", raw_file, 140)[0] :]


def store_raw(node: Node, instance: bytes, data_set: bytes, sop_class: str = CR) -> int:
    with storing(node) as peer:
        peer.sendall(p_data(1, 3, command(c_store_rq(sop_class, instance))))
        parts = [data_set[at : at + 100_000] for at in range(0, len(data_set), 100_000)] or [b""]
        for part in parts[:-1]:
            peer.sendall(p_data(1, 0, part))
        peer.sendall(p_data(1, 2, parts[-1]))
        return status_of(read_pdu(peer))


# 1


def test_large_pdus_are_asked_for_and_a_data_set_goes_to_disk_as_it_comes(node: Node) -> None:
    with associated(node.port) as assoc:
        assert assoc.acceptor.maximum_length == MAX_PDU_BYTES == 131072
    with storing(node) as peer:
        peer.sendall(p_data(1, 3, command(c_store_rq(CR, b"1.2.3"))))
        for _ in range(20):
            peer.sendall(p_data(1, 0, bytes(100_000)))
        soon(lambda: sum(p.stat().st_size for p in (node.folder / "incoming").iterdir()) > 2_000_000)
    soon(lambda: not list((node.folder / "incoming").iterdir()))
    served(node)


# 2


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        STORAGE_RQ[:3],
        STORAGE_RQ[:-1],
        STORAGE_RQ + struct.pack(">BBL", 4, 0, 1000) + b"\0" * 10,
        STORAGE_RQ + p_data(1, 3, command(c_store_rq(CR, b"1.2.3"))) + p_data(1, 0, b"\0" * 500),
    ],
    ids=["silent", "in-a-header", "in-the-request", "in-a-pdu", "in-a-data-set"],
)
def test_who_stalls_is_dropped(hasty: Node, beginning: bytes) -> None:
    with raw(hasty, beginning) as peer:
        served(hasty) if not beginning else None
        peer.settimeout(5)
        answers = list(iter(lambda: read_pdu(peer)[0], 0))
    assert answers == ([ACCEPT, ABORT] if len(beginning) > len(STORAGE_RQ) else [])
    soon(lambda: not peers())
    served(hasty)


# 3


def test_silent_connections_keep_nobody_out(node: Node) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(raw(node))
        served(node)
        assert len(peers()) <= 2 * 20


def test_half_dead_associations_of_one_host_keep_no_other_out(tmp_path: Path) -> None:
    allow = ((PACS, HOST), (PACS, "127.0.0.2"))
    with running_node(tmp_path / "var", allow=allow, max_associations=6, max_associations_per_host=4) as node:
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(storing(node, "127.0.0.2"))
            with raw(node, STORAGE_RQ, "127.0.0.2") as peer:
                assert read_pdu(peer) == (REJECT, bytes((0, 2, 3, 2)))  # transient: local limit exceeded
            served(node)
        soon(lambda: not peers())
        with storing(node, "127.0.0.2"):
            served(node)


def test_an_idle_association_makes_room_in_the_end(hasty: Node) -> None:
    with storing(hasty) as peer:
        assert read_pdu(peer)[0] == ABORT
    served(hasty)


def test_health_checks_cost_nothing(node: Node) -> None:
    for _ in range(300):
        socket.create_connection((HOST, node.port)).close()
    served(node)
    soon(lambda: not peers())


# 4


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-keyout", str(key), "-out", str(pem)],
        check=True, capture_output=True,
    )  # fmt: skip
    return pem, key


def test_silent_tls_peers_stop_nobody(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificate)
    client = ssl.create_default_context(cafile=certificate[0])
    with running_node(tmp_path / "var", ssl_context=server) as node, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(raw(node))
        stack.enter_context(raw(node, b"\x16\x03\x01\x02\x00\x01"))  # begins a ClientHello
        with raw(node, STORAGE_RQ) as plain:  # DICOM without TLS
            assert read_pdu(plain)[0] not in (ACCEPT, REJECT)
        served(node, tls_args=(client, "localhost"))


# 5


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 20])
@pytest.mark.parametrize("before", [True, False])
def test_absurd_lengths_are_refused_unread(node: Node, *, before: bool, length: int) -> None:
    with raw(node) if before else storing(node) as peer:
        peer.sendall(struct.pack(">BBL", 1 if before else 4, 0, length))
        assert read_pdu(peer) == (ABORT, bytes((0, 0, 2, 6)))
    served(node)


# 6


@pytest.mark.parametrize(
    "uid", [b"../../../../tmp/evil", b"/etc/passwd", b"1.2..3", b".1", b"1." + b"2" * 70, b"\xff\xfe", b"1.2\n.3"]
)
def test_a_uid_that_is_none_becomes_no_path(node: Node, uid: bytes) -> None:
    assert store_raw(node, uid, body(chest(64, 64))) == 0x0117
    assert not node.files()
    served(node)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_a_path_for_a_uid_in_the_data_set_is_called_so(node: Node, keyword: str) -> None:
    ds = chest(64, 64)
    uid = str(ds.SOPInstanceUID)
    data_set = body(ds).replace(str(ds[keyword].value).encode(), b"../../evil".ljust(len(ds[keyword].value), b"0"))
    assert store_raw(node, uid.encode(), data_set) == 0xC003
    assert not node.files()
    served(node)


# 7


def test_a_data_set_that_is_damaged_or_another_is_refused(node: Node) -> None:
    ds = chest(64, 64)
    uid, data_set = str(ds.SOPInstanceUID).encode(), body(ds)
    assert store_raw(node, uid, b"") == 0xC000
    assert store_raw(node, uid, random.Random(1).randbytes(5000)) == 0xC000
    assert store_raw(node, uid, data_set[:300]) == 0xC000
    assert store_raw(node, uid, data_set[:-1]) == 0xC000
    assert store_raw(node, uid, data_set[:-5000]) == 0xC000
    assert store_raw(node, b"1.2.3", data_set) == 0xA900
    assert store_raw(node, uid, data_set, sop_class="1.2.840.10008.5.1.4.1.1.7") == 0x0122
    other = chest(64, 64, kind="SC")
    assert store_raw(node, str(other.SOPInstanceUID).encode(), body(other)) == 0xA900
    assert not node.files()
    assert store_raw(node, uid, data_set) == 0
    served(node)


def test_a_data_set_above_the_limit_is_turned_away_while_it_comes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing_module, "OBJECT_BYTES", 1_000_000)
    with storing(node) as peer:
        peer.sendall(p_data(1, 3, command(c_store_rq(CR, b"1.2.3"))))
        for _ in range(20):
            peer.sendall(p_data(1, 0, bytes(100_000)))
        soon(lambda: not list((node.folder / "incoming").iterdir()))
        peer.sendall(p_data(1, 2, b""))
        assert status_of(read_pdu(peer)) == 0xC002
    assert node.refused[-1][2] == 0xC002
    served(node)


@pytest.mark.parametrize("kind", ["items-undefined", "items-kept-open", "elements", "deflated-zeros", "nested"])
def test_others_are_answered_while_a_hostile_object_is_handled(node: Node, kind: str) -> None:
    raw_file = KINDS[kind]()
    data_set = raw_file[144 + struct.unpack_from("<L", raw_file, 140)[0] :]
    uid = str(chest(96, 80, seed=11).SOPInstanceUID).encode()
    offered = str(SYNTAXES["deflated" if kind.startswith("deflated") else "explicit"])
    stop, taken = threading.Event(), []

    def attack() -> None:
        while not stop.is_set():
            with raw(node, associate_rq((1, CR, offered))) as peer:
                assert read_pdu(peer)[0] == ACCEPT
                peer.sendall(p_data(1, 3, command(c_store_rq(CR, uid))))
                for at in range(0, len(data_set), 100_000):
                    peer.sendall(p_data(1, 0, data_set[at : at + 100_000]))
                peer.sendall(p_data(1, 2, b""))
                taken.append(status_of(read_pdu(peer)))

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for seed in range(8):
            began = time.monotonic()
            assert send(node.port, chest(64, 64, seed=seed)) == [0]
            assert time.monotonic() - began < ANSWER_S / 4
    finally:
        stop.set()
        attacker.join()
    assert set(taken) == {0 if kind == "nested" else 0xC002}


def test_a_uid_with_leading_zeros_is_taken_as_it_is(node: Node) -> None:
    ds = chest(64, 64, uids=("1.2.001.64.5", "1.2.001.64.5.07", "1.2.001.64.5.07.1"))
    assert store_raw(node, b"1.2.001.64.5.07.1", body(ds)) == 0
    assert [row["study_instance_uid"] for row in node.rows()] == ["1.2.001.64.5"]


# 8


@pytest.mark.parametrize(
    "elements",
    [
        {k: v for k, v in c_store_rq(CR, b"1.2.3").items() if k != 0x0100},
        {0x0100: b"\x01\x80", 0x0120: b"\1\0", 0x0800: b"\x01\x01", 0x0900: b"\0\0"},
        {},
    ],
    ids=["no-field", "a-response", "empty"],
)
def test_a_command_that_is_none_ends_its_association(node: Node, elements: dict[int, bytes]) -> None:
    with storing(node) as peer:
        peer.sendall(p_data(1, 3, command(elements)))
        assert read_pdu(peer)[0] == ABORT
    served(node)


def test_an_empty_instance_uid_gets_an_answer(node: Node) -> None:
    assert store_raw(node, b"", body(chest(64, 64))) == 0x0117
    served(node)


@pytest.mark.parametrize(
    "bytes_",
    [
        p_data(3, 3, command(c_store_rq(CR, b"1.2.3"))),
        p_data(1, 0, b"data"),
        p_data(1, 3, command(c_store_rq(CR, b"1.2.3"))) * 2,
        p_data(1, 1, bytes(100_000)),
        struct.pack(">BBLLBB", 4, 0, 6, 99, 1, 3),
        struct.pack(">BBLLBB", 4, 0, 6, 0, 1, 3),
        struct.pack(">BBL", 4, 0, 3) + b"abc",
        struct.pack(">BBL", 9, 0, 4) + b"abcd",
        STORAGE_RQ,
    ],
)
def test_what_is_no_message_ends_its_association(node: Node, bytes_: bytes) -> None:
    with storing(node) as peer:
        peer.sendall(bytes_)
        assert read_pdu(peer)[0] == ABORT
    served(node)


def test_noise(node: Node) -> None:
    chance = random.Random(7)
    good = STORAGE_RQ + p_data(1, 3, command(c_store_rq(CR, b"1.2.3"))) + p_data(1, 2, b"x" * 50)
    for _ in range(150):
        noise = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            noise[chance.randrange(len(noise))] = chance.randrange(256)
        with raw(node, bytes(noise[: chance.randint(1, len(noise))])):
            pass
    for _ in range(20):
        with raw(node, chance.randbytes(chance.randint(1, 2000))):
            pass
    soon(lambda: not peers())
    assert not node.files()
    served(node)


# 9


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs"]
    if os.geteuid() or subprocess.run(["mount", *options, str(mount)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_a_full_disk_is_out_of_resources_and_leaves_nothing(small_disk: Path) -> None:
    with running_node(small_disk / "var") as node:
        assert send(node.port, chest(1200, 1000)) == [0xA700]  # 2.4 MB
        assert not [path for path in node.files() if path.suffix in (".dcm", ".part")]
        assert echo(node.port) == 0
        subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
        assert send(node.port, chest(1200, 1000)) == [0]


def test_below_the_watermark_nothing_is_taken(tmp_path: Path) -> None:
    with running_node(tmp_path / "var", watermark_bytes=1 << 60) as node:
        assert send(node.port, chest(64, 64)) == [0xA700]
        assert echo(node.port) == 0
        assert not node.files()


# 10


def test_every_transfer_syntax_that_we_decode_is_taken(node: Node) -> None:
    images = [chest(64, 64, seed=i, syntax=s, bits_stored=8) for i, s in enumerate(SYNTAXES)]
    assert send(node.port, *images) == [0] * len(SYNTAXES)
    assert [row["transfer_syntax_uid"] for row in node.rows()] == [str(uid) for uid in SYNTAXES.values()]
    served(node)


# who may


def test_only_those_named_may_store_and_all_may_echo(node: Node) -> None:
    with raw(node, associate_rq((1, CR, EXPLICIT), calling="STRANGER")) as peer:
        assert read_pdu(peer) == (REJECT, bytes((0, 1, 1, 3)))
    with raw(node, associate_rq((1, CR, EXPLICIT)), source="127.0.0.2") as peer:  # the title alone is not enough
        assert read_pdu(peer) == (REJECT, bytes((0, 1, 1, 3)))
    with raw(node, associate_rq((1, CR, EXPLICIT), called="OTHER")) as peer:
        assert read_pdu(peer) == (REJECT, bytes((0, 1, 1, 7)))
    with associated(node.port, Verification, CR, calling="STRANGER") as assoc:
        assert [cx.abstract_syntax for cx in assoc.accepted_contexts] == [Verification]
        assert assoc.send_c_echo().Status == 0
    served(node)


def peers() -> list[threading.Thread]:
    """The threads of connections."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("peer:")]
