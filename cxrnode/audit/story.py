"""The whole life of a study, as the ledger tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from cxrnode.audit.kinds import in_words
from cxrnode.audit.query import Filters, find
from cxrnode.audit.times import local
from cxrnode.types import AuditEvent, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A study's records, in the order of the chain."""

    study_instance_uid: str
    events: tuple[AuditEvent, ...]

    @property
    def patients(self) -> list[str]:
        """As its images named them: one, unless somebody sent films of two patients under one study."""
        return sorted({e.patient_id for e in self.events if e.patient_id})

    @property
    def accession_numbers(self) -> list[str]:
        return sorted({e.accession_number for e in self.events if e.accession_number})

    @property
    def images(self) -> dict[str, AuditEvent | None]:
        """SOP Instance UID -> the newest record of its outcome; None while it has none."""
        found: dict[str, AuditEvent | None] = {}
        for e in self.events:
            if (uid := sop_of(e)) and e.kind in {"received", "scanned"}:
                found.setdefault(uid, None)
            elif uid and e.kind in set(Outcome) and (e.kind != Outcome.DUPLICATE or found.get(uid) is None):
                found[uid] = e
        return found

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"study {self.study_instance_uid}"
        yield f"patient {_listed(self.patients)}, accession number {_listed(self.accession_numbers)}"
        for uid, outcome in self.images.items():
            said = in_words(outcome).removeprefix(f"image {uid} ") if outcome else "not analysed yet"
            yield f"image {uid}: {said}"
        yield ""
        for e in self.events:
            yield f"{local(e.at)}  {e.seq:>8}  {e.actor}: {in_words(e)}"


def story_of(c: Connection, study_instance_uid: str) -> Story:
    """Raises CxrnodeError for what is no UID; a story without events: the ledger does not know the study."""
    found = find(c, Filters(study_instance_uid=study_instance_uid))
    return Story(study_instance_uid=study_instance_uid, events=tuple(found.events))


def sop_of(e: AuditEvent) -> str | None:
    """The SOP Instance UID of a record; an older one has it in its detail."""
    said = e.sop_instance_uid or e.detail.get("sop_instance_uid")
    return str(said) if said else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "not told"
