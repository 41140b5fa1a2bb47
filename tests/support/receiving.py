"""A running intake on a free port of the loopback, with its store; and peers that send to it."""

from __future__ import annotations

import ssl
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy import text

from cxrnode.dicom.requestor import TidyAE
from cxrnode.dicom.scp import (
    CommitmentReport,
    CommitmentRequest,
    Handlers,
    IncomingInstance,
    Listener,
    ListenerOptions,
    start_listener,
)
from cxrnode.intake import Intake
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.types import Peer, Receipt, ReceivedInstance

NODE = "CXRNODE"
PACS = "PACS"
HOST = "127.0.0.1"
ANSWER_S = 20.0  # a peer's patience: more than a busy machine takes


@dataclass(kw_only=True)
class Node:
    """The intake as the node runs it, with SQLite in `folder`."""

    folder: Path
    listener: Listener
    database: Database
    commit_requests: list[CommitmentRequest] = field(default_factory=list)
    commit_reports: list[CommitmentReport] = field(default_factory=list)
    associations: list[tuple[Peer, str]] = field(default_factory=list)  # with why they were rejected
    refused: list[tuple[Peer, str, int, str]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listener.port

    def rows(self) -> list[dict[str, Any]]:
        """The received instances, oldest first."""
        with self.database.begin() as c:
            return [dict(row) for row in c.execute(text("SELECT * FROM instance ORDER BY id")).mappings()]

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".sqlite")


def recorder(database: Database) -> Callable[[Sequence[ReceivedInstance]], Sequence[Receipt]]:
    queue = Queue("intake")

    def record(batch: Sequence[ReceivedInstance]) -> Sequence[Receipt]:
        with database.begin() as c:
            return queue.receive(c, batch)

    return record


def knower(database: Database) -> Callable[[Sequence[Path]], set[Path]]:
    queue = Queue("intake")

    def known(paths: Sequence[Path]) -> set[Path]:
        with database.begin() as c:
            return {Path(path) for path in queue.known_paths(c, [path.as_posix() for path in paths])}

    return known


@contextmanager
def running_node(
    folder: Path,
    *,
    store: Callable[[IncomingInstance], int] | None = None,
    watermark_bytes: int = 0,
    ssl_context: ssl.SSLContext | None = None,
    allow: tuple[tuple[str, str], ...] = ((PACS, HOST),),
    **options: Any,
) -> Iterator[Node]:
    """A node that takes what PACS at 127.0.0.1 sends. `store` stands before the intake's."""
    folder.mkdir(exist_ok=True)
    database = Database(folder.parent / f"{folder.name}.sqlite")
    intake = Intake(
        folder, record=recorder(database), is_stat=lambda _ds, peer: peer.calling_aet == "ER",
        watermark_bytes=watermark_bytes, on_refused=lambda *told: refused.append(told),
    )  # fmt: skip
    associations: list[tuple[Peer, str]] = []
    refused: list[tuple[Peer, str, int, str]] = []
    requests: list[CommitmentRequest] = []
    reports: list[CommitmentReport] = []
    listener = start_listener(
        ListenerOptions(
            ae_title=NODE,
            bind=HOST,
            port=0,
            incoming=intake.incoming,
            allow=allow,
            tls=(lambda: ssl_context) if ssl_context else None,
            **options,
        ),
        Handlers(
            store=store or intake.store,
            has_room=intake.has_room,
            commit_requested=lambda request: requests.append(request) or 0,  # type: ignore[func-returns-value]
            commit_reported=lambda report: reports.append(report) or 0,  # type: ignore[func-returns-value]
            association=lambda *told: associations.append(told),
            echo_only=lambda *told: associations.append(told),
            refused=lambda *told: refused.append(told),
        ),
    )
    try:
        yield Node(
            folder=folder, listener=listener, database=database, commit_requests=requests, commit_reports=reports,
            associations=associations, refused=refused,
        )  # fmt: skip
    finally:
        listener.close(grace_s=5)
        database.close()


@contextmanager
def associated(
    port: int, *contexts: Dataset | str, calling: str = PACS, called: str = NODE, **how: Any
) -> Iterator[Association]:
    """A peer's association: with the contexts that these data sets need, or of these SOP classes."""
    ae = TidyAE(ae_title=calling)  # pynetdicom's own may miss a rejection that is followed by the end at once
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = ANSWER_S
    for context in contexts or (Verification,):
        if isinstance(context, Dataset):
            ae.add_requested_context(context.SOPClassUID, context.file_meta.TransferSyntaxUID)
        else:
            ae.add_requested_context(context)
    assoc = ae.associate(HOST, port, ae_title=called, **how)
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def send(port: int, *data_sets: Dataset, **how: Any) -> list[int]:
    """The statuses of C-STORE; -1 where there was no answer."""
    with associated(port, *data_sets, **how) as assoc:
        assert assoc.is_established
        return [int(assoc.send_c_store(ds).get("Status", -1)) for ds in data_sets]


def echo(port: int, **how: Any) -> int:
    with associated(port, **how) as assoc:
        assert assoc.is_established
        return int(assoc.send_c_echo().get("Status", -1))


# --- a peer of bytes ------------------------------------------------------------------------------------------------


def item(kind: int, content: bytes) -> bytes:
    """An item of an A-ASSOCIATE PDU (PS3.8 section 9.3.2)."""
    return struct.pack(">BBH", kind, 0, len(content)) + content


def associate_rq(
    *contexts: tuple[int, str, str], calling: str = PACS, called: str = NODE, user: bytes = b"", version: int = 1
) -> bytes:
    """An A-ASSOCIATE-RQ; contexts: (ID, abstract syntax, transfer syntax)."""
    body = struct.pack(">HH16s16s32x", version, 0, called.ljust(16).encode(), calling.ljust(16).encode())
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract, transfer in contexts:
        inner = item(0x30, abstract.encode()) + item(0x40, transfer.encode())
        body += item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + inner)
    body += item(0x50, user or item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4"))
    return struct.pack(">BBL", 1, 0, len(body)) + body


def command(elements: dict[int, bytes]) -> bytes:
    """A command set, as damaged as it is told to be."""
    body = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements.items())
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def c_store_rq(sop_class: str, sop_instance: bytes, **more: bytes) -> dict[int, bytes]:
    return {
        0x0002: sop_class.encode() + b"\0" * (len(sop_class) % 2),
        0x0100: struct.pack("<H", 0x0001),
        0x0110: struct.pack("<H", 1),
        0x0700: struct.pack("<H", 0),
        0x0800: struct.pack("<H", 0),
        0x1000: sop_instance + b"\0" * (len(sop_instance) % 2),
    }


def p_data(context: int, control: int, content: bytes) -> bytes:
    """One P-DATA-TF with one PDV. control: 1 command, 2 last fragment."""
    pdv = struct.pack(">LBB", len(content) + 2, context, control) + content
    return struct.pack(">BBL", 4, 0, len(pdv)) + pdv


def main(folder: Path) -> None:
    """A node in a process of its own, until its standard input ends: prints its port."""
    with running_node(folder) as node:
        print(node.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
