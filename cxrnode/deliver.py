"""The deliver stage: what the outbox holds goes to its destinations, and each answer is recorded.

A destination has a thread of its own, and another one where it does storage commitment: a dead or slow one delays
nobody else, and a commitment delays no result. `deliver_all` runs the same sender until the outbox is dry.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from cxrnode import metrics
from cxrnode.committer import Committer, Refused, tell_refused
from cxrnode.dicom.requestor import NoAssociationError, SendError
from cxrnode.dicom.scu import CALLING_AE_TITLE, TIMEOUT_S, StoreScu
from cxrnode.errors import AWAY, DataDirAwayError
from cxrnode.logs import words
from cxrnode.loops import Loop, beat
from cxrnode.patience import FOR_EVER, ONE_RUN, Breaker, Patience
from cxrnode.store.database import Database
from cxrnode.store.outbox import ASK_AGAIN_S, LONGEST_WAIT_S, Delivery, Outbox
from cxrnode.store.queue import Lease
from cxrnode.store.trouble import is_trouble
from cxrnode.types import Destination

LEASE_S = 30.0  # renewed three times as often
POLL_S = 0.2  # a STAT result leaves within it
_PAGE = 16  # results a claim; what a killed sender did not record of them is sent again, under the same UIDs
_PAGE_S = 0.25  # and no new one is begun after this: what is STAT waits for no more than that, and for the one in hand
_IDLE_S = 5.0  # an association is kept so long for what may come next
_HANGS_S = 300.0  # a step of these loops waits for a peer, a minute a time
_MOST_ERRORS = 5  # attempts at a result that end in an error of ours

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}

log = logging.getLogger(__name__)


class _CountedError(SendError):
    """A result failed, which is recorded with it, and leaves nothing to do on this association."""


@dataclass(slots=True, kw_only=True)
class Sender:
    """Sends to one destination, from one thread."""

    destination: Destination
    root: Path  # paths in the store are relative to it
    database: Database
    outbox: Outbox
    patience: Patience
    calling_ae_title: str = CALLING_AE_TITLE
    timeout_s: float = TIMEOUT_S
    lease_s: float = LEASE_S
    check: Callable[[], None] = lambda: None  # raises DataDirAwayError where `root` is not there just now
    stopping: Callable[[], bool] = lambda: False
    on_done: Callable[[int], None] = lambda _: None
    breaker: Breaker = field(init=False)
    _owner: str = field(init=False)
    _scu: StoreScu | None = None
    _used_at: float = 0.0  # monotonic, s
    _holding: bool = False
    _taken: list[tuple[Delivery, str]] = field(default_factory=list)  # and with which answer: not recorded yet
    _told: set[str] = field(default_factory=set)  # SOP classes that it does not take, as the log has it

    def __post_init__(self) -> None:
        self.breaker = Breaker(patience=self.patience, tell=partial(metrics.tried, self.destination.key, "storage"))
        self._owner = f"{platform.node()[:24]}:{os.getpid()}:{uuid.uuid4().hex[:16]}"

    def step(self) -> float:
        """Send what is due, a page of it at most; returns the seconds until there may be more to do."""
        wait_s = self.breaker.wait_s
        if wait_s and not self.breaker.reached:
            return wait_s
        new_stat = bool(wait_s)  # it failed for others: a STAT result that comes meanwhile is put to it all the same
        with self.database.read() as c:
            due = self.outbox.due(c, self.destination.key, self._lease(), now=time.time(), new_stat=new_stat)
        if not due:
            if time.monotonic() > self._used_at + _IDLE_S:
                self.close()
            return POLL_S
        self.check()
        try:
            self._send_page(self._connected(), new_stat=new_stat)
        except _CountedError:
            self.close()
            return 0.0
        except SendError as e:  # no result was put to it
            self.close()
            self.breaker.failed(str(e))
            self._tell_failure(str(e))
        return self.breaker.wait_s

    def heartbeat(self) -> None:
        """From another thread: keep what is in hand, however long the peer takes."""
        if self._holding:
            with self.database.begin(shared=True) as c:
                self.outbox.heartbeat(c, self.destination.key, self._lease())

    def close(self) -> None:
        if self._scu:
            self._scu.close()
            self._scu = None

    def _connected(self) -> StoreScu:
        if self._scu is None or not self._scu.is_open:
            scu = StoreScu(self.destination, calling_ae_title=self.calling_ae_title, timeout_s=self.timeout_s)
            self._scu = scu.open()
            if self.breaker.is_open:
                scu.echo()  # does it answer at all? Only then is a result put to it
        return self._scu

    def _send_page(self, scu: StoreScu, *, new_stat: bool) -> None:
        """What is answered is recorded together: a commit waits for the disk, and for whoever else writes."""
        self._holding = True
        with self.database.begin(shared=True) as c:
            page = self.outbox.claim(
                c, self.destination.key, self._lease(), now=time.time(), limit=_PAGE, new_stat=new_stat
            )  # fmt: skip
        try:
            try:
                all_tried = self._send_each(scu, page)
            finally:
                self._record()
        except BaseException:
            self._release()
            raise
        finally:
            self._holding = False
            self._used_at = time.monotonic()
        if not all_tried:
            self._release()

    def _send_each(self, scu: StoreScu, page: Sequence[Delivery]) -> bool:
        """False: it came to an end before the last one."""
        until = time.monotonic() + _PAGE_S
        for n, d in enumerate(page):
            if self.stopping() or (n and time.monotonic() > until):
                return False
            beat()
            self._safely(d, partial(self._send, scu, d))
        return True

    def _release(self) -> None:
        with self.database.begin(shared=True) as c:
            self.outbox.release(c, self.destination.key, owner=self._owner)

    def _safely(self, d: Delivery, step: Callable[[], None]) -> None:
        """One that raises what nobody expects is set aside, and holds up no other."""
        try:
            step()
        except SendError:  # not its fault: the next one would fare no better
            raise
        except Exception as e:
            if is_trouble(e):  # nor is this
                raise
            self.check()
            log.exception("%s: a result could not be sent", self.destination, extra=_named(d))
            metrics.thread_survived(f"send {self.destination.key}")
            if d.attempts + 1 >= _MOST_ERRORS:
                self._refused(d, words(e), type(e).__name__)
            else:
                self._failed(d, words(e), type(e).__name__)
            raise _CountedError from e  # in what state this leaves the association nobody knows

    def _send(self, scu: StoreScu, d: Delivery) -> None:
        path = self.root / d.made.path
        try:
            damage = _damage(path, d.made.sha256)
        except OSError as e:  # a disk that errs, too many open files: worth another try
            why = f"its file cannot be read just now: {e.strerror}"
            self._failed(d, why, why)
            return
        if damage:
            self.check()
            self._refused(d, damage, damage)
            return
        began = time.monotonic()
        try:
            answer = scu.send(path)
        except NoAssociationError:  # it was not even put
            raise
        except SendError as e:  # of the association nothing is left
            self._failed(d, str(e), str(e))
            raise _CountedError from e
        metrics.delivered(self.destination.key, time.monotonic() - began)
        if answer.transient:
            self._failed(d, answer.text, answer.code)
            if self.breaker.is_open or (answer.out_of_resources and not self.breaker.blames(d.id)):
                raise _CountedError  # the next one would fare no better
            return
        self.breaker.succeeded(of=d.id)
        if answer.accepted:
            self._told.discard(d.made.sop_class_uid)
            self._taken.append((d, answer.text))
        else:
            self._refused(d, answer.text, answer.code, tell=answer.status is not None or self._is_news(d))

    def _failed(self, d: Delivery, why: str, code: str) -> None:
        """Once more, later. why: for the store, in the peer's words where it gave any; code: for the log."""
        self.breaker.failed(code, of=d.id)
        self._tell_failure(code, d)
        tries = d.attempts + 1
        if self.patience.attempts and tries >= self.patience.attempts:
            self._refused(d, why, code)
            return
        patience = self.patience
        if self.breaker.blames(d.id):  # the destination is well: there is nothing to be in time for
            patience = replace(patience, longest_wait_s=LONGEST_WAIT_S)
        now = time.time()
        with self.database.begin() as c:
            ours = self.outbox.retry(
                c, d, owner=self._owner, now=now, not_before=now + patience.wait_s(tries), status=why
            )
        self._check(ours)

    def _tell_failure(self, code: str, d: Delivery | None = None) -> None:
        named = _named(d) | {"attempts": d.attempts + 1} if d else {}
        log.warning(
            "%s: %s (%d in a row)", self.destination, code, self.breaker.failures,
            extra={"destination": self.destination.key, "failures": self.breaker.failures, **named},
        )  # fmt: skip

    def _record(self) -> None:
        """What the destination took."""
        taken, self._taken = self._taken, []
        try:
            self._record_together(taken)
        except Exception as e:
            if is_trouble(e):
                raise
            log.exception("%s: %d results cannot be recorded together", self.destination, len(taken))
            for one in taken:  # it may be one of them
                with suppress(_CountedError):
                    self._safely(one[0], partial(self._record_together, [one]))

    def _record_together(self, taken: Sequence[tuple[Delivery, str]]) -> None:
        if not taken:
            return
        with self.database.begin() as c:
            now = time.time()
            ours = [self.outbox.sent(c, d, owner=self._owner, now=now, status=text) for d, text in taken]
        self._check(all(ours))
        self.on_done(len(taken))

    def _is_news(self, d: Delivery) -> bool:
        """True for the first result of a SOP class that the destination does not take: one line in the log for many."""
        told = d.made.sop_class_uid in self._told
        self._told.add(d.made.sop_class_uid)
        return not told

    def _refused(self, d: Delivery, why: str, code: str, *, tell: bool = True) -> None:
        """why: for the store, in the peer's words where it gave any; code: for the log."""
        with self.database.begin() as c:
            ours = self.outbox.refused(c, d, owner=self._owner, now=time.time(), status=why)
        self._check(ours)
        log.log(
            logging.ERROR if tell else logging.DEBUG,
            "%s: a result is not delivered: %s (cxrnode queue show tells more)", self.destination, code,
            extra={"destination": self.destination.key, "status": code, **_named(d)},
        )  # fmt: skip
        self.on_done(1)

    def _check(self, ours: bool) -> None:
        if not ours:
            log.warning("%s: a lease ended while its result was being sent: another sender has it", self.destination)

    def _lease(self) -> Lease:
        return Lease(owner=self._owner, now=time.monotonic(), seconds=self.lease_s)


class Deliverer:
    """The node's deliver stage: `start`, and `stop` at the end."""

    def __init__(
        self,
        *,
        destinations: Iterable[Destination],
        root: Path,
        database: Database,
        outbox: Outbox,
        calling_ae_title: str = CALLING_AE_TITLE,
        patience: Patience = FOR_EVER,
        timeout_s: float = TIMEOUT_S,
        lease_s: float = LEASE_S,
        ask_again_s: float = ASK_AGAIN_S,
        report_refused: Refused = tell_refused,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._stop = threading.Event()
        self._patience = patience
        destinations = tuple(destinations)
        self.senders = [
            Sender(
                destination=d, root=root, database=database, outbox=outbox, patience=patience, lease_s=lease_s,
                check=check, stopping=self._stop.is_set, calling_ae_title=calling_ae_title, timeout_s=timeout_s,
            )
            for d in destinations
        ]  # fmt: skip
        self._committers = [
            Committer(
                destination=d, database=database, outbox=outbox, patience=patience, ask_again_s=ask_again_s,
                calling_ae_title=calling_ae_title, timeout_s=timeout_s, refused=report_refused,
            )
            for d in destinations
            if d.storage_commitment
        ]  # fmt: skip
        self._beat_s = lease_s / 3
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for loop in self._loops():
            thread = threading.Thread(target=loop.run, args=(self._stop,), name=loop.name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Let what is being sent come to its end, and hand back the rest. False: something still runs after the time.

        What that one holds is free again when its lease ends.
        """
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _loops(self) -> Iterator[Loop]:
        """What is claimed when a step raises comes back when its lease ends."""
        for sender in self.senders:
            name = f"send {sender.destination.key}"
            yield Loop(name=name, step=sender.step, close=sender.close, hangs_s=_HANGS_S, patience=self._patience)
        for committer in self._committers:
            name = f"commit {committer.destination.key}"
            yield Loop(name=name, step=committer.step, hangs_s=_HANGS_S, patience=self._patience)
        if self.senders:
            soon = Patience(first_wait_s=1.0, longest_wait_s=self._beat_s)
            yield Loop(name="heartbeat", step=self._heartbeat, patience=soon)

    def _heartbeat(self) -> float:
        for sender in self.senders:
            sender.heartbeat()
        return self._beat_s


def deliver_all(
    destination: Destination,
    *,
    root: Path,
    database: Database,
    outbox: Outbox,
    on_done: Callable[[int], None],
    patience: Patience = ONE_RUN,
) -> None:
    """Send every result in the store that `destination` has not taken, until none waits. For the store's only user.

    A refusal is final for this run, and so is the last of `patience.attempts` failures in a row: what is left then is
    recorded as not delivered, and the next run tries again.
    """
    sender = Sender(
        destination=destination, root=root, database=database, outbox=outbox, patience=patience, on_done=on_done
    )
    with database.begin() as c:
        outbox.reopen(c, destination.key, now=time.time())
        outbox.enqueue_all(c, destination.key, now=time.time())
    try:
        while not _dry(sender):
            if patience.attempts and sender.breaker.failures >= patience.attempts:
                _give_up(sender)
            else:
                time.sleep(sender.step())
    finally:
        sender.close()


def _dry(sender: Sender) -> bool:
    with sender.database.read() as c:
        return not sender.outbox.waiting(c, sender.destination.key)


def _give_up(sender: Sender) -> None:
    with sender.database.begin() as c:
        sender.outbox.give_up(c, sender.destination.key, now=time.time(), status=sender.breaker.why, limit=256)


def _named(d: Delivery) -> dict[str, str]:
    """For the log."""
    return {"sop_instance_uid": d.made.sop_instance_uid, "study_instance_uid": d.made.study_instance_uid}


def _damage(path: Path, digest: str) -> str:
    """What is wrong with the file since the node checked it; empty: nothing. Raises DataDirAwayError, OSError."""
    try:
        found = sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        if e.errno in AWAY:
            raise DataDirAwayError(f"a result cannot be read just now: {e.strerror}") from e
        if e.errno not in _MISSING:
            raise
        return f"its file cannot be read: {e.strerror}"
    return "" if found == digest else "its file was changed since it was made"
