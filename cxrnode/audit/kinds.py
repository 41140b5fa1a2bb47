"""Every kind of record, and how it reads. What a record does not have reads as nothing."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import partial
from typing import Any

from cxrnode.printable import printable
from cxrnode.types import AuditEvent
from cxrnode.words import counted

PHRASES = {
    # the node and its operators
    "configuration_loaded": "configuration {configuration:short} loaded by {user} on {host}, cxrnode {software}",
    "stage_started": "stage started on {host} by {user}, cxrnode {software}, configuration {configuration:short}",
    "stage_stopped": "stage stopped",
    "run_started": "run started by {user}, cxrnode {software}, {bundle}",
    "run_resumed": "run gone on with by {user}, cxrnode {software}, {bundle}",
    "run_complete": "run complete",
    "run_incomplete": "run ended, but not every image has its row and its results",
    "run_interrupted": "run interrupted",
    "run_failed": "run failed",
    "model_loaded": "model {name} {version} loaded, digest {model:short}",
    "engine_verified": "engine {engine} passed its golden check",
    "engine_failed": "engine {engine} failed: {reason}",
    "engine_fallback": "the CPU works in the GPU's place: {reason}",
    "engine_shadowed": "engine {engine} compared with the CPU",
    "retried": "to be analysed again: image {sop}",
    "writes_resumed": "{what} can be written again, after {seconds} s",
    "anchored": "ledger anchored at record {anchored_seq} in {file}",
    "clock_doubted": "the clock of {host} is not believed any more: it is {why}",
    "clock_believed": "the clock of {host} is believed again",
    "exported": "ledger exported as {format}: records {first} to {last}",
    # what comes in
    "association_accepted": "association of {ae} at {host} with {called_aet} accepted{count:times}{since:since} {why}",
    "association_rejected": "association of {ae} at {host} with {called_aet} rejected{count:times}{since:since}: {why}",
    "association_aborted": "association of {ae} at {host} aborted{count:times}{since:since}: {why}",
    "received": "{ae} at {host} sent image {sop}, {size_bytes:size}: {outcome}",
    "refused": "{ae} at {host} sent image {sop}, refused with {status}: {why}{count:times}",
    "set_aside": "image {sop} lay in the spool without a row in the database: set aside, {path}",
    "scanned": "image {sop} found in the archive: {path}",
    # what becomes of it
    "claimed": "analysis of image {sop} begun, attempt {attempt}",
    "forgotten": "claimed and then not worked on, which is a fault of cxrnode; to be worked on again {sop:image_named}",
    "analysed": "image {sop} analysed: {probabilities} by {engine} {reason:note}",
    "not_analysed": "image {sop} not analysed: {reason} {why}",
    "failed": "image {sop} failed: {reason} {why}",
    "duplicate": "image {sop} is a duplicate {why}",
    "report_made": "{object:object} {sop} made",
    "several_patients": "the study holds images of {patients} patients: a report each",
    "study_reported": "the study is done: nothing of it waits for its report",
    "report_failed": "the report could not be made: {why}",
    # where it goes
    "delivery_queued": "{results:result} to be sent to {destination}",
    "delivery_reopened": "to be sent once more to {destination} {sop}",
    "delivered": "{sop} stored at {destination}: {status}",
    "delivery_postponed": "{sop} not yet stored at {destination}: {status}",
    "delivery_failed": "{sop} not stored at {destination}: {status}",
    "commitment_requested": "{destination} asked to commit to {sop_instance_uids}",
    "check_ended": "the synthetic study for {destination} is out of the outbox again",
    "commitment_postponed": "{destination} was not to be asked for commitment: {status}",
    "committed": "{destination} commits to {sop}",
    "commitment_failed": "{destination} does not keep {sop}: {status}",
    "commitment_report_refused": "commitment report of {ae} at {host} refused{count:times}{since:since}: {why}",
    "commitment_asked": "{ae} at {host} asks for commitment to {instances:image}",
    "commitment_answered": "{ae} at {host} answered: {kept} kept, {missing} missing",
    "commitment_given_up": "{ae} at {host} gets no answer to its request for commitment: {why}",
    # what goes
    "spool_deleted": "retention: image {sop} deleted",
    "result_deleted": "retention: result {sop} deleted",
}
_MIB = 1 << 20


def _counted(noun: str, v: Any) -> str:
    return counted(v, noun) if isinstance(v, int) else f"{v} {noun}s"


_FORMATS: dict[str, Callable[[Any], str]] = {
    "": lambda v: ", ".join(map(str, v)) if isinstance(v, list) else str(v),
    "short": lambda v: str(v)[:12],
    "size": lambda v: f"{v / _MIB:.1f} MiB" if isinstance(v, int) else str(v),
    "times": lambda v: f" ({v} times)" if isinstance(v, int) and v > 1 else "",
    "since": lambda v: f" since {v}",
    **{noun: partial(_counted, noun) for noun in ("image", "result")},
    "image_named": lambda v: f"(image {v})",
    "note": lambda v: f"({v})",
    "object": lambda v: {"sr": "Structured Report", "capture": "Grad-CAM capture"}.get(v, str(v)),
}


class _Phrase(string.Formatter):
    def get_value(self, key: int | str, _args: Any, kwargs: Any) -> Any:
        return kwargs.get(key)

    def format_field(self, value: Any, format_spec: str) -> str:
        return "" if value in ("", None) else _FORMATS[format_spec](value)


_phrase = _Phrase()


def in_words(event: AuditEvent) -> str:
    """What a record says, on one line; fit for a terminal, whatever its sender put into it."""
    template = PHRASES.get(event.kind, event.kind.replace("_", " ") + " {sop}")
    older = {"sop": event.detail.get("sop_instance_uid", ""), "ae": event.detail.get("calling_aet", ""),
             "outcome": event.detail.get("receipt", "")}  # fmt: skip
    columns = {"sop": event.sop_instance_uid, "ae": event.ae_title, "outcome": event.outcome}
    values = {**event.detail, **older, **{k: v for k, v in columns.items() if v}}
    return " ".join(printable(_phrase.vformat(template, (), values)).split())
