"""How each kind of record reads, word by word."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cxrnode.audit.kinds import PHRASES, in_words
from cxrnode.types import AuditEvent

COLUMNS = {"sop_instance_uid", "ae_title", "outcome"}
DIGEST = "0123456789abcdef" * 4


def event(kind: str, **said: Any) -> AuditEvent:
    columns = {k: v for k, v in said.items() if k in COLUMNS}
    detail = {k: v for k, v in said.items() if k not in COLUMNS}
    return AuditEvent(
        seq=1, at=datetime(2026, 11, 22, tzinfo=UTC), kind=kind, actor="x", study_instance_uid=None, prev_hash="",
        hash="", detail=detail, **columns,
    )  # fmt: skip


SOP = {"sop_instance_uid": "1.2.3"}
PEER = {"ae_title": "PACS", "host": "10.0.0.9"}
AT = {"destination": "archive"}
READS: list[tuple[str, dict[str, Any], str]] = [
    ("configuration_loaded", {"configuration": DIGEST, "user": "ada", "host": "box", "software": "0.1.0"},
     "configuration 0123456789ab loaded by ada on box, cxrnode 0.1.0"),
    ("stage_started", {"configuration": DIGEST, "user": "ada", "host": "box", "software": "0.1.0"},
     "stage started on box by ada, cxrnode 0.1.0, configuration 0123456789ab"),
    ("stage_stopped", {}, "stage stopped"),
    ("run_started", {"user": "ada", "software": "0.1.0", "bundle": "b 1.0"},
     "run started by ada, cxrnode 0.1.0, b 1.0"),
    ("run_resumed", {"user": "ada", "software": "0.1.0", "bundle": "b 1.0"},
     "run gone on with by ada, cxrnode 0.1.0, b 1.0"),
    ("run_complete", {}, "run complete"),
    ("run_incomplete", {}, "run ended, but not every image has its row and its results"),
    ("run_interrupted", {}, "run interrupted"),
    ("run_failed", {}, "run failed"),
    ("model_loaded", {"name": "b", "version": "1.0", "model": DIGEST}, "model b 1.0 loaded, digest 0123456789ab"),
    ("engine_verified", {"engine": "cpu"}, "engine cpu passed its golden check"),
    ("engine_failed", {"engine": "gpu", "reason": "lost"}, "engine gpu failed: lost"),
    ("engine_fallback", {"reason": "lost"}, "the CPU works in the GPU's place: lost"),
    ("engine_shadowed", {"engine": "gpu"}, "engine gpu compared with the CPU"),
    ("retried", SOP, "to be analysed again: image 1.2.3"),
    ("writes_resumed", {"what": "rows", "seconds": 12.5}, "rows can be written again, after 12.5 s"),
    ("clock_doubted", {"host": "here", "offset_s": 3600.0, "why": "60 minutes ahead of the time that really passed"},
     "the clock of here is not believed any more: it is 60 minutes ahead of the time that really passed"),
    ("clock_believed", {"host": "here"}, "the clock of here is believed again"),
    ("anchored", {"anchored_seq": 12, "file": "/a/b"}, "ledger anchored at record 12 in /a/b"),
    ("exported", {"format": "jsonl", "first": 1, "last": 12}, "ledger exported as jsonl: records 1 to 12"),
    ("association_accepted", {**PEER, "called_aet": "ME"}, "association of PACS at 10.0.0.9 with ME accepted"),
    ("association_accepted", {**PEER, "called_aet": "ME", "count": 1},
     "association of PACS at 10.0.0.9 with ME accepted"),
    ("association_accepted", {**PEER, "called_aet": "ME", "count": 2},
     "association of PACS at 10.0.0.9 with ME accepted (2 times)"),
    ("association_rejected", {**PEER, "called_aet": "ME", "count": 7, "why": "unknown"},
     "association of PACS at 10.0.0.9 with ME rejected (7 times): unknown"),
    ("association_accepted", {**PEER, "called_aet": "ME", "count": 2, "since": "10:00", "why": "many"},
     "association of PACS at 10.0.0.9 with ME accepted (2 times) since 10:00 many"),
    ("association_rejected", {**PEER, "called_aet": "ME", "count": 2, "since": "10:00", "why": "unknown"},
     "association of PACS at 10.0.0.9 with ME rejected (2 times) since 10:00: unknown"),
    ("association_aborted", {**PEER, "count": 2, "since": "10:00", "why": "gone"},
     "association of PACS at 10.0.0.9 aborted (2 times) since 10:00: gone"),
    ("association_aborted", {**PEER, "why": "gone"}, "association of PACS at 10.0.0.9 aborted: gone"),
    ("received", {**SOP, **PEER, "size_bytes": 1 << 20, "outcome": "new"},
     "PACS at 10.0.0.9 sent image 1.2.3, 1.0 MiB: new"),
    ("received", {"sop_instance_uid": "1.2.3", "size_bytes": 1_500_000, "calling_aet": "OLD", "receipt": "duplicate"},
     "OLD at sent image 1.2.3, 1.4 MiB: duplicate"),
    ("refused", {**SOP, **PEER, "status": "0xA700", "why": "full", "count": 3},
     "PACS at 10.0.0.9 sent image 1.2.3, refused with 0xA700: full (3 times)"),
    ("set_aside", {**SOP, "path": "spool/1/2.dcm"},
     "image 1.2.3 lay in the spool without a row in the database: set aside, spool/1/2.dcm"),
    ("scanned", {**SOP, "path": "a.zip!/b.dcm"}, "image 1.2.3 found in the archive: a.zip!/b.dcm"),
    ("claimed", {**SOP, "attempt": 2}, "analysis of image 1.2.3 begun, attempt 2"),
    ("forgotten", SOP,
     "claimed and then not worked on, which is a fault of cxrnode; to be worked on again (image 1.2.3)"),
    ("forgotten", {}, "claimed and then not worked on, which is a fault of cxrnode; to be worked on again"),
    ("analysed", {**SOP, "probabilities": [0.93, 0.05], "engine": "cpu"}, "image 1.2.3 analysed: 0.93, 0.05 by cpu"),
    ("analysed", {**SOP, "probabilities": [0.93, 0.05], "engine": "cpu", "reason": "gpu lost"},
     "image 1.2.3 analysed: 0.93, 0.05 by cpu (gpu lost)"),
    ("not_analysed", {**SOP, "reason": "lateral", "why": "ViewPosition=LL"},
     "image 1.2.3 not analysed: lateral ViewPosition=LL"),
    ("failed", {**SOP, "reason": "truncated", "why": "at byte 7"}, "image 1.2.3 failed: truncated at byte 7"),
    ("duplicate", {**SOP, "why": "of 1.2.4"}, "image 1.2.3 is a duplicate of 1.2.4"),
    ("report_made", {**SOP, "object": "sr"}, "Structured Report 1.2.3 made"),
    ("report_made", {**SOP, "object": "capture"}, "Grad-CAM capture 1.2.3 made"),
    ("report_made", {**SOP, "object": "later"}, "later 1.2.3 made"),
    ("several_patients", {"patients": 2}, "the study holds images of 2 patients: a report each"),
    ("study_reported", {"jobs": 2}, "the study is done: nothing of it waits for its report"),
    ("check_ended", AT, "the synthetic study for archive is out of the outbox again"),
    ("report_failed", {"why": "x"}, "the report could not be made: x"),
    ("delivery_queued", {**AT, "results": 1}, "1 result to be sent to archive"),
    ("delivery_queued", {**AT, "results": 2}, "2 results to be sent to archive"),
    ("delivery_queued", {**AT, "results": "many"}, "many results to be sent to archive"),
    ("delivery_reopened", {**AT, **SOP}, "to be sent once more to archive 1.2.3"),
    ("delivered", {**AT, **SOP, "status": "0x0000"}, "1.2.3 stored at archive: 0x0000"),
    ("delivery_postponed", {**AT, **SOP, "status": "0xA700"}, "1.2.3 not yet stored at archive: 0xA700"),
    ("delivery_failed", {**AT, **SOP, "status": "0xA900"}, "1.2.3 not stored at archive: 0xA900"),
    ("commitment_requested", {**AT, "sop_instance_uids": ["1.2", "1.3"]}, "archive asked to commit to 1.2, 1.3"),
    ("commitment_postponed", {**AT, "status": "away"}, "archive was not to be asked for commitment: away"),
    ("committed", {**AT, **SOP}, "archive commits to 1.2.3"),
    ("commitment_failed", {**AT, **SOP, "status": "0x0112"}, "archive does not keep 1.2.3: 0x0112"),
    ("commitment_report_refused", {**PEER, "count": 2, "since": "10:00", "why": "archive was asked"},
     "commitment report of PACS at 10.0.0.9 refused (2 times) since 10:00: archive was asked"),
    ("commitment_asked", {**PEER, "instances": 1}, "PACS at 10.0.0.9 asks for commitment to 1 image"),
    ("commitment_answered", {**PEER, "kept": 3, "missing": 0}, "PACS at 10.0.0.9 answered: 3 kept, 0 missing"),
    ("commitment_given_up", {**PEER, "why": "gone"},
     "PACS at 10.0.0.9 gets no answer to its request for commitment: gone"),
    ("spool_deleted", SOP, "retention: image 1.2.3 deleted"),
    ("result_deleted", SOP, "retention: result 1.2.3 deleted"),
    ("of_a_later_version", SOP, "of a later version 1.2.3"),
    ("of_a_later_version", {"sop_instance_uid": None}, "of a later version"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "said", "words"), READS)
def test_a_record_in_words(kind: str, said: dict[str, Any], words: str) -> None:
    assert in_words(event(kind, **said)) == words


def test_every_kind_is_here() -> None:
    assert {kind for kind, _, _ in READS} - {"of_a_later_version"} == set(PHRASES)


def test_an_older_record_s_detail_gives_way_to_the_columns() -> None:
    old = {"calling_aet": "OLD", "receipt": "duplicate", "sop_instance_uid": "1.9"}
    e = event("received", **SOP, ae_title="NEW", outcome="new")
    e.detail.update({**old, "host": "h", "size_bytes": "unknown"})
    assert in_words(e) == "NEW at h sent image 1.2.3, unknown: new"
