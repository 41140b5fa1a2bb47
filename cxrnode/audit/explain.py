"""Which model, weights, thresholds, software and input made a result: from the ledger alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from cxrnode.audit.kinds import in_words
from cxrnode.audit.query import Filters, check_uid, find
from cxrnode.audit.record import MODEL_LOADED
from cxrnode.audit.story import Story, sop_of, story_of
from cxrnode.audit.times import local
from cxrnode.types import AuditEvent, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One source image: what came, and what the model said of it before the result was made."""

    sop_instance_uid: str
    pixel_digest: str | None
    received: tuple[AuditEvent, ...]  # `received` or `scanned`; several where the UID came with other bytes too
    outcome: AuditEvent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A result, as of its newest making."""

    made: AuditEvent
    model: AuditEvent | None  # `model_loaded`: name, version, weights, thresholds
    inputs: tuple[Input, ...]

    def lines(self) -> Iterator[str]:
        """For people."""
        said = self.made.detail
        yield f"{in_words(self.made)} {local(self.made.at)}, record {self.made.seq} of the ledger"
        yield f"study       {self.made.study_instance_uid}"
        yield f"sha256      {said.get('sha256')} (of the file)"
        yield f"software    cxrnode {said.get('software') or '(this record does not say which)'}"
        yield from self._model_lines()
        if said.get("predecessor"):
            yield f"replaces    {said['predecessor']}"
        for i in self.inputs:
            yield from _input_lines(i, self._labels)

    @property
    def _labels(self) -> list[str]:
        labels: Any = self.model.detail["labels"] if self.model else []
        return [label["name"] for label in labels]

    def _model_lines(self) -> Iterator[str]:
        digest = self.made.detail.get("model")
        if self.model is None:
            yield f"model       {digest or 'not told by this record'}"
            return
        m: dict[str, Any] = self.model.detail
        yield f"model       {m['name']} {m['version']}, bundle digest {digest}"
        yield f"weights     {m['weights']} (sha256 of model.onnx)"
        for label in m["labels"]:
            at = f"present from {label['present_at']:g}, absent below {label['absent_below']:g}"
            yield f"threshold   {label['name']}: {at}"


def _input_lines(i: Input, labels: Sequence[str]) -> Iterator[str]:
    yield f"input       image {i.sop_instance_uid}, sha256 of the pixel data {i.pixel_digest or 'not known'}"
    for e in i.received:
        digest = f"; sha256 of the data set {e.detail['sha256']}" if "sha256" in e.detail else ""
        yield f"            {local(e.at)} {in_words(e)}{digest}"
    if i.outcome:
        yield f"            {local(i.outcome.at)} {in_words(i.outcome)}"
        said: Any = i.outcome.detail.get("probabilities")
        if said and len(said) == len(labels):
            yield f"            {', '.join(f'{name} {p:g}' for name, p in zip(labels, said, strict=True))}"


def explain(c: Connection, sop_instance_uid: str) -> Explanation | None:
    """What made this result; None where the ledger knows no result of this UID. Raises CxrnodeError for no UID."""
    check_uid(sop_instance_uid)
    found = [e for e in find(c, Filters(sop_instance_uid=sop_instance_uid)).events if e.kind == "report_made"]
    if not found:
        return None
    made = found[-1]
    story = story_of(c, str(made.study_instance_uid))
    return Explanation(
        made=made, model=_model(c, made), inputs=tuple(_input(story, made, *s) for s in _sources(made, story))
    )


def _model(c: Connection, made: AuditEvent) -> AuditEvent | None:
    loaded = (e for e in find(c, Filters(kind=MODEL_LOADED)).events if e.detail["model"] == made.detail.get("model"))
    return max((e for e in loaded if e.seq < made.seq), key=lambda e: e.seq, default=None)


def _sources(made: AuditEvent, story: Story) -> list[tuple[str, str | None]]:
    """(SOP Instance UID, pixel digest) of each image; an older record does not say, but what was known by then does."""
    said: Any = made.detail.get("sources")
    if said:
        return [(uid, digest) for uid, digest in said]
    first = made.seq + 1 if _is_capture(made) else 1
    told = [e for e in story.events if e.kind in set(Outcome) and first <= e.seq <= _last_of(made)]
    found: list[tuple[Any, Any]] = [(sop_of(e), e.detail.get("pixel_digest")) for e in told]
    return [source for source in dict.fromkeys(found) if source[0]]


def _is_capture(made: AuditEvent) -> bool:
    return made.detail.get("object") == "capture"


def _last_of(made: AuditEvent) -> int:
    """The last record that tells of its making: a capture's is followed by the outcome of its image."""
    return made.seq + 1 if _is_capture(made) else made.seq


def _input(story: Story, made: AuditEvent, uid: str, digest: str | None) -> Input:
    mine = [e for e in story.events if sop_of(e) == uid]
    last = _last_of(made)
    outcomes = [e for e in mine if e.kind in set(Outcome) and e.detail.get("pixel_digest") == digest and e.seq <= last]
    outcome = outcomes[-1] if outcomes else None
    came = [e for e in mine if e.kind in {"received", "scanned"} and e.seq < made.seq]
    path = outcome.detail.get("path") if outcome else None
    same = [e for e in came if e.detail.get("path") == path]
    return Input(sop_instance_uid=uid, pixel_digest=digest, received=tuple(same or came), outcome=outcome)
