"""A study's life and a result's causes, from a ledger that the store wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from cxrnode.audit.explain import explain
from cxrnode.audit.story import story_of
from cxrnode.errors import CxrnodeError
from cxrnode.store.queue import Queue
from tests.support.audit import PATIENT, SR, lived
from tests.support.bundles import make_bundle
from tests.support.store import analysed, claim, header, study_uid

STUDY = study_uid(101)
FIRST, SECOND = (header(101, n).sop_instance_uid for n in (1, 2))


@pytest.fixture
def c(tmp_path: Path) -> Iterator[Connection]:
    database = lived(tmp_path / "x.sqlite")
    with database.begin() as c:
        yield c
    database.close()


def test_the_story_of_a_study(c: Connection) -> None:
    story = story_of(c, STUDY)
    assert (story.patients, story.accession_numbers) == ([PATIENT], ["A1"])
    assert {uid: e and e.outcome for uid, e in story.images.items()} == {FIRST: "analysed", SECOND: "not_analysed"}
    told = "\n".join(story.lines())
    for words in (
        f"study {STUDY}", f"patient {PATIENT}, accession number A1",
        f"image {FIRST}: analysed: 0.93, 0.05, 0.02 by cpu",
        f"image {SECOND}: not analysed: lateral ViewPosition=LL",
        f"intake: PACS at 127.0.0.1 sent image {FIRST}, 4768.4 MiB: new", "4768.4 MiB: duplicate",
        f"analysis of image {FIRST} begun, attempt 1", f"Structured Report {SR} made",
        "deliver: 2 results to be sent to pacs", f"{SR} stored at pacs: 0x0000",
    ):  # fmt: skip
        assert words in told, told


def test_a_study_that_only_came_is_said_to_wait(c: Connection) -> None:
    assert "not analysed yet" in "\n".join(story_of(c, study_uid(102)).lines())
    assert story_of(c, "1.2.3").events == ()
    with pytest.raises(CxrnodeError, match="no UID"):
        story_of(c, "1.2.3.")


def test_what_made_a_report(c: Connection) -> None:
    found = explain(c, SR)
    assert found
    assert [(i.sop_instance_uid, i.pixel_digest) for i in found.inputs] == [(FIRST, f"{1:064x}"), (SECOND, "d" * 64)]
    assert [[e.outcome for e in i.received] for i in found.inputs] == [["new", "duplicate"], ["new"]]
    bundle = make_bundle()
    told = "\n".join(found.lines())
    for words in (
        f"Structured Report {SR} made", "software    cxrnode 0.1.0", f"bundle digest {bundle.digest}",
        f"{bundle.name} {bundle.manifest.version}", "sha256 of the data set " + "a" * 64,
        f"threshold   {bundle.labels[0].name}: present from", f"{bundle.labels[0].name} 0.93",
    ):  # fmt: skip
        assert words in told, told


def test_a_capture_s_cause_is_its_image_alone_as_it_was_analysed_then(c: Connection) -> None:
    capture = "2.25.1"
    before = explain(c, capture)
    assert before
    assert [i.sop_instance_uid for i in before.inputs] == [FIRST]
    queue = Queue("analyse")
    queue.retry(c, [1])
    (again,) = claim(c, limit=1)
    queue.finish(c, analysed(again), owner="a")
    after = explain(c, capture)
    assert after
    assert after.made.seq > before.made.seq
    (b,), (a,) = before.inputs, after.inputs
    assert b.outcome
    assert a.outcome
    assert (b.outcome.seq, a.outcome.seq) == (before.made.seq + 1, after.made.seq + 1)


def test_what_was_not_made_here_has_no_causes(c: Connection) -> None:
    assert explain(c, FIRST) is None
    assert explain(c, "1.2.3") is None
    with pytest.raises(CxrnodeError, match="no UID"):
        explain(c, "x")
