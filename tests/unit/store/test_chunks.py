"""Look-ups of more keys than a statement takes variables: what a peer asks for has no bound that we set."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, insert, select

from cxrnode.store.chunks import CHUNK, chunks
from cxrnode.store.commitments import Commitments
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import ANALYSED, RECEIVED, REPORTED, Queue
from cxrnode.store.schema import delivery, instance, job, result
from cxrnode.store.studies import Studies
from cxrnode.types import Reason, Rejection, StoredImage, Study

MANY = 70_000  # more than PostgreSQL's 65535 and SQLite's 32766
HERE = 700  # rows that are there
DX = "1.2.840.10008.5.1.4.1.1.1.1"
STUDY = "1.2.3"


def fill(c: Connection, state: str) -> None:
    columns = ("path", "location", "study_instance_uid", "sop_instance_uid", "sop_class_uid", "received_at")
    rows: list[tuple[object, ...]] = [(f"spool/{n}", {}, STUDY, f"1.2.3.{n}", DX, 1.0) for n in range(1, HERE + 1)]
    c.execute(insert(instance), [dict(zip(columns, row, strict=True)) for row in rows])
    c.execute(
        insert(job), [{"id": n, "study_instance_uid": STUDY, "state": state, "outcome": "analysed"} for n in ids(c)]
    )


def ids(c: Connection) -> list[int]:
    return list(c.execute(select(instance.c.id)).scalars())


def test_in_order_and_none_left_out() -> None:
    assert [n for chunk in chunks(range(2 * CHUNK + 1)) for n in chunk] == list(range(2 * CHUNK + 1))
    assert [len(chunk) for chunk in chunks(range(2 * CHUNK + 1))] == [CHUNK, CHUNK, 1]
    assert not list(chunks(()))


def test_what_a_peer_asks_for(where: Path | str) -> None:
    database = Database(where)
    asked = [(DX, f"1.2.3.{n}") for n in range(MANY)]
    with database.begin() as c:
        fill(c, RECEIVED)
        assert Queue("test").known_paths(c, [f"spool/{n}" for n in range(MANY)]) == {
            f"spool/{n}" for n in range(1, HERE + 1)
        }
        held = Commitments("test").held(c, asked)
        assert list(held) == asked[1 : HERE + 1]
        assert held[DX, "1.2.3.7"] == [Path("spool/7")]
    database.close()


def test_what_an_operator_names(where: Path | str) -> None:
    database = Database(where)
    with database.begin() as c:
        fill(c, REPORTED)
        named = [*ids(c), *range(10**6, 10**6 + MANY), *ids(c)]
        studies = Queue("test").retry(c, named)
        assert studies == [STUDY] * HERE
        Outbox("test").reopen_refused(c, [*studies, *(f"1.3.{n}" for n in range(MANY))], now=2.0)
        assert Queue("test").bury(c, named) == HERE
        assert not Queue("test").bury(c, named)
    database.close()


def test_a_study_of_many_films(where: Path | str) -> None:
    database, studies = Database(where), Studies("test")
    with database.begin() as c:
        fill(c, ANALYSED)
        uids = [f"1.9.{n}" for n in range(HERE)]
        rows = [
            {"sop_instance_uid": uid, "kind": "capture", "study_instance_uid": STUDY, "sop_class_uid": DX, "path": uid,
             "sha256": "0"}
            for uid in uids
        ]  # fmt: skip
        c.execute(insert(result), rows)
        assert Outbox("test").enqueue(c, uids[::-1], ["pacs"], now=1.0) == HERE
        order = select(delivery.c.result_uid).order_by(delivery.c.id)
        assert list(c.execute(order).scalars()) == uids[::-1]
        image = StoredImage(kept_header=b"", pixel_digest="0")
        whole = Study(
            study_instance_uid=STUDY, job_ids=(*ids(c), *range(10**6, 10**6 + MANY)), images=(image,) * HERE,
            image_ids=tuple(ids(c)), sources=(),
            last_received_at=1.0, stat=False, earlier=(),
        )  # fmt: skip
        columns = "study_instance_uid, last_received_at, lease_owner, lease_until, attempts, not_before"
        c.exec_driver_sql(f"INSERT INTO study ({columns}) VALUES ('{STUDY}', 1.0, 'me', 9.0, 0, 0.0)")
        assert studies.failed(c, whole, Rejection(reason=Reason.RESULT_INVALID), owner="me")
        states = c.execute(select(job.c.state, job.c.outcome)).all()
        assert states == [(REPORTED, "failed")] * HERE
    database.close()
