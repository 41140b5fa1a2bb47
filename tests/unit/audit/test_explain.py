"""A study's story and a result's causes, line by line, from records written one by one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from cxrnode.audit.explain import explain
from cxrnode.audit.story import story_of
from cxrnode.store import ledger
from cxrnode.store.database import Database

STUDY, A, B, SR, CAPTURE = "1.2.3", "1.2.3.1", "1.2.3.2", "2.25.1", "2.25.2"
MODEL = "0123456789abcdef" * 4
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


class Clock(datetime):
    """The ledger's: a second a record."""

    ticks = 0

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        cls.ticks += 1
        return NOW.replace(second=cls.ticks % 60).astimezone(tz)


@pytest.fixture
def c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setattr(ledger, "datetime", Clock)
    monkeypatch.setattr("cxrnode.audit.story.local", stamp)
    monkeypatch.setattr("cxrnode.audit.explain.local", stamp)
    Clock.ticks = 0
    database = Database(tmp_path / "x.sqlite")
    with database.begin() as c:
        yield c
    database.close()


def stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%H:%M:%S")


def write(c: Connection, kind: str, *, actor: str = "analyse", **said: Any) -> int:
    if kind != "model_loaded":
        said.setdefault("study_instance_uid", STUDY)
    return ledger.append(c, kind, actor=actor, **said)


def load(c: Connection, present_at: float = 0.5, model: str = MODEL) -> int:
    labels = [{"name": "covid", "present_at": present_at, "absent_below": 0.2},
              {"name": "normal", "present_at": 0.5, "absent_below": 0.1}]  # fmt: skip
    return write(c, "model_loaded", model=model, name="net", version="1.0", weights="ab" * 32, labels=labels)


def receive(c: Connection, uid: str, path: str, sha256: str, outcome: str = "new", **more: Any) -> int:
    return write(c, "received", actor="intake", sop_instance_uid=uid, ae_title="PACS", host="h", size_bytes=1 << 20,
                 outcome=outcome, path=path, sha256=sha256, **more)  # fmt: skip


def analyse(c: Connection, uid: str, digest: str, path: str, probabilities: tuple[float, ...] = (0.9, 0.1)) -> int:
    return write(c, "analysed", sop_instance_uid=uid, outcome="analysed", pixel_digest=digest, path=path, engine="cpu",
                 probabilities=list(probabilities))  # fmt: skip


def report(c: Connection, sources: list[tuple[str, str]] | None = None, **more: Any) -> int:
    told = {"sources": sources} if sources else {}
    return write(c, "report_made", sop_instance_uid=SR, object="sr", **{"sha256": "c" * 64, "model": MODEL,
                 "software": "0.1.0", **told, **more})  # fmt: skip


# --- a story


def test_a_story_line_by_line(c: Connection) -> None:
    receive(c, A, "a", "1" * 64, patient_id="P1", accession_number="A2")
    receive(c, B, "b", "2" * 64, patient_id="P0", accession_number="A1")
    analyse(c, A, "d" * 64, "a")
    write(c, "delivered", actor="deliver", sop_instance_uid=SR, destination="pacs", status="0x0000")
    assert list(story_of(c, STUDY).lines()) == [
        "study 1.2.3",
        "patient P0, P1, accession number A1, A2",
        "image 1.2.3.1: analysed: 0.9, 0.1 by cpu",
        "image 1.2.3.2: not analysed yet",
        "",
        "10:00:01         1  intake: PACS at h sent image 1.2.3.1, 1.0 MiB: new",
        "10:00:02         2  intake: PACS at h sent image 1.2.3.2, 1.0 MiB: new",
        "10:00:03         3  analyse: image 1.2.3.1 analysed: 0.9, 0.1 by cpu",
        "10:00:04         4  deliver: 2.25.1 stored at pacs: 0x0000",
    ]


def test_what_nobody_told_is_said_to_be(c: Connection) -> None:
    write(c, "scanned", sop_instance_uid=A, path="x")
    assert list(story_of(c, STUDY).lines())[:3] == [
        "study 1.2.3", "patient not told, accession number not told", "image 1.2.3.1: not analysed yet",
    ]  # fmt: skip


def test_an_image_has_its_newest_outcome_and_a_copy_takes_nobody_s_place(c: Connection) -> None:
    receive(c, A, "a", "1" * 64)
    write(c, "failed", sop_instance_uid=A, outcome="failed", reason="x")
    analyse(c, A, "d" * 64, "a")
    write(c, "duplicate", sop_instance_uid=A, outcome="duplicate", why="of it")
    receive(c, A, "a", "1" * 64, outcome="duplicate")
    write(c, "duplicate", sop_instance_uid=B, outcome="duplicate", why="of it")
    write(c, "claimed", sop_instance_uid="1.2.3.9")
    found = {uid: e and e.kind for uid, e in story_of(c, STUDY).images.items()}
    assert found == {A: "analysed", B: "duplicate"}
    write(c, "not_analysed", sop_instance_uid=A, outcome="not_analysed", reason="x")
    last = story_of(c, STUDY).images[A]
    assert last
    assert last.kind == "not_analysed"


def test_an_older_record_names_its_image_in_its_detail(c: Connection) -> None:
    e = next(iter(ledger.events(c)), None)
    assert e is None
    write(c, "received")
    (e,) = ledger.events(c)
    e.detail["sop_instance_uid"] = A
    story = story_of(c, STUDY)
    assert story.images == {}
    assert type(story)(study_instance_uid=STUDY, events=(e,)).images == {A: None}


# --- a report


def test_an_explanation_line_by_line(c: Connection) -> None:
    load(c, present_at=0.4)
    load(c)  # the newest before the report
    load(c, model="other" + MODEL[5:])
    receive(c, A, "a", "1" * 64)
    receive(c, A, "a", "1" * 64, outcome="duplicate")
    receive(c, A, "a2", "3" * 64, outcome="conflict")
    receive(c, B, "b", "2" * 64)
    analyse(c, A, "d" * 64, "a")
    analyse(c, A, "e" * 64, "a2", (0.1, 0.9))
    write(c, "not_analysed", sop_instance_uid=B, outcome="not_analysed", pixel_digest="f" * 64, path="b",
          reason="lateral", why="LL")  # fmt: skip
    report(c, [(A, "d" * 64), (B, "f" * 64)], predecessor="2.25.0")
    load(c, present_at=0.6)
    receive(c, A, "a", "1" * 64, outcome="duplicate")
    analyse(c, A, "d" * 64, "a", (0.5, 0.5))
    found = explain(c, SR)
    assert found
    assert list(found.lines()) == [
        "Structured Report 2.25.1 made 10:00:11, record 11 of the ledger",
        "study       1.2.3",
        f"sha256      {'c' * 64} (of the file)",
        "software    cxrnode 0.1.0",
        f"model       net 1.0, bundle digest {MODEL}",
        f"weights     {'ab' * 32} (sha256 of model.onnx)",
        "threshold   covid: present from 0.5, absent below 0.2",
        "threshold   normal: present from 0.5, absent below 0.1",
        "replaces    2.25.0",
        f"input       image 1.2.3.1, sha256 of the pixel data {'d' * 64}",
        f"            10:00:04 PACS at h sent image 1.2.3.1, 1.0 MiB: new; sha256 of the data set {'1' * 64}",
        f"            10:00:05 PACS at h sent image 1.2.3.1, 1.0 MiB: duplicate; sha256 of the data set {'1' * 64}",
        "            10:00:08 image 1.2.3.1 analysed: 0.9, 0.1 by cpu",
        "            covid 0.9, normal 0.1",
        f"input       image 1.2.3.2, sha256 of the pixel data {'f' * 64}",
        f"            10:00:07 PACS at h sent image 1.2.3.2, 1.0 MiB: new; sha256 of the data set {'2' * 64}",
        "            10:00:10 image 1.2.3.2 not analysed: lateral LL",
    ]


def test_what_the_records_do_not_say_is_said_to_be_unknown(c: Connection) -> None:
    receive(c, A, "a", "1" * 64)
    write(c, "report_made", sop_instance_uid=SR, object="sr", sha256="c" * 64, sources=[(B, None)])
    found = explain(c, SR)
    assert found
    assert list(found.lines())[1:] == [
        "study       1.2.3",
        f"sha256      {'c' * 64} (of the file)",
        "software    cxrnode (this record does not say which)",
        "model       not told by this record",
        "input       image 1.2.3.2, sha256 of the pixel data not known",
    ]


def test_a_model_whose_record_is_missing_is_told_by_its_digest(c: Connection) -> None:
    analyse(c, A, "d" * 64, "a")
    report(c, [(A, "d" * 64)])
    load(c)  # afterwards
    found = explain(c, SR)
    assert found
    assert found.model is None
    assert f"model       {MODEL}" in list(found.lines())
    assert not any("covid" in line for line in found.lines())


def test_other_labels_than_the_model_s_are_not_put_to_its_names(c: Connection) -> None:
    load(c)
    analyse(c, A, "d" * 64, "a", (0.2, 0.3, 0.5))
    report(c, [(A, "d" * 64)])
    found = explain(c, SR)
    assert found
    assert list(found.lines())[-1] == "            10:00:02 image 1.2.3.1 analysed: 0.2, 0.3, 0.5 by cpu"


def test_the_newest_making_counts(c: Connection) -> None:
    first, second = report(c, [(A, "d" * 64)]), report(c, [(B, "f" * 64)])
    found = explain(c, SR)
    assert found
    assert (found.made.seq, found.inputs[0].sop_instance_uid) == (second, B)
    assert first < second


def test_an_older_record_s_causes_are_what_was_known_by_then(c: Connection) -> None:
    analyse(c, A, "d" * 64, "a")
    analyse(c, A, "d" * 64, "a")
    write(c, "duplicate", sop_instance_uid=B, outcome="duplicate", pixel_digest="f" * 64)
    write(c, "failed", outcome="failed")  # names no image
    report(c)
    analyse(c, "1.2.3.9", "9" * 64, "c")
    found = explain(c, SR)
    assert found
    assert [(i.sop_instance_uid, i.pixel_digest) for i in found.inputs] == [(A, "d" * 64), (B, "f" * 64)]
    assert [i.outcome and i.outcome.seq for i in found.inputs] == [2, 3]


def test_an_older_report_s_cause_may_be_the_first_record_of_all(c: Connection) -> None:
    assert analyse(c, A, "d" * 64, "a") == 1
    report(c)
    found = explain(c, SR)
    assert found
    assert [i.sop_instance_uid for i in found.inputs] == [A]


def test_an_older_capture_s_cause_is_the_image_whose_outcome_follows(c: Connection) -> None:
    analyse(c, A, "d" * 64, "a")
    made = write(c, "report_made", sop_instance_uid=CAPTURE, object="capture", model=MODEL)
    analyse(c, B, "f" * 64, "b")
    analyse(c, "1.2.3.9", "9" * 64, "c")
    found = explain(c, CAPTURE)
    assert found
    assert [(i.sop_instance_uid, i.outcome and i.outcome.seq) for i in found.inputs] == [(B, made + 1)]


def test_what_came_under_another_path_is_told_where_the_path_is_not_known(c: Connection) -> None:
    receive(c, A, "a", "1" * 64)
    write(c, "scanned", sop_instance_uid=A, path="z")
    analyse(c, A, "d" * 64, "elsewhere")
    report(c, [(A, "d" * 64)])
    found = explain(c, SR)
    assert found
    assert [e.kind for e in found.inputs[0].received] == ["received", "scanned"]
    assert "data set" not in list(found.lines())[-2]  # nor what it did not hash
