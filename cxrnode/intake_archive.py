"""Intake for run-batch: every item of the archives, with the study that it belongs to, into the queue.

The whole archive is scanned (headers only) before the first study is reported: a study's files may lie anywhere in
it, and a study has one report. It is committed as it goes, and gone on with where it was: what has its row is walked
past, and not read again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from cxrnode.archive import iter_items
from cxrnode.errors import unexpected
from cxrnode.item import Item
from cxrnode.pool import NoWorkerError, Pool, Task, WorkerCrashedError
from cxrnode.store.database import Database
from cxrnode.store.queue import Queue
from cxrnode.store.trouble import is_trouble
from cxrnode.types import NewItem, Reason, Rejection
from cxrnode.workers import scan

_CHUNK = 64  # items a task and a commit
_AHEAD = 8  # chunks in the workers' hands
_GROUP = 1024  # items that are looked up at once,
_GROUP_S = 0.25  # or what was walked in this time: a slow archive is committed as it goes, too


def take_in(
    archives: Sequence[Path],
    *,
    out: Path,
    spool: Path,
    database: Database,
    queue: Queue,
    pool: Pool,
    now: float,
    on_scanned: Callable[[int], None],
    on_total: Callable[[int], None] = lambda _: None,
    on_empty: Callable[[Path], None] = lambda _: None,
) -> int:
    """Scan `archives` into the queue in archive order; items that an earlier run took in are passed over.

    now: seconds since 1970 that stand as the moment of receipt of each study. on_total: told how many there are to
    scan, as soon as the archives were walked to their end. on_empty: told of archives that hold no file. Returns how
    many rows there must be now, those of earlier runs included.
    """
    with database.read() as c:
        before = queue.count_all(c)
    total = 0

    def known(paths: Sequence[str]) -> set[str]:
        with database.read() as c:
            return queue.known_images(c, paths)

    items = chain.from_iterable(iter_items(a, spool=spool, skip=out, on_empty=on_empty, known=known) for a in archives)
    pending: deque[tuple[list[Item], Task[list[NewItem]]]] = deque()
    for group in _groups(items):
        fresh = _unknown(group, {i.path for waiting, _ in pending for i in waiting}, database, queue)
        total += len(fresh)
        for start in range(0, len(fresh), _CHUNK):
            chunk = fresh[start : start + _CHUNK]
            pending.append((chunk, pool.submit(scan, chunk)))
            while len(pending) >= _AHEAD:
                _store(*pending.popleft(), database, queue, pool, now, on_scanned)
        while pending and pending[0][1].future.done():
            _store(*pending.popleft(), database, queue, pool, now, on_scanned)
    on_total(total)
    while pending:
        _store(*pending.popleft(), database, queue, pool, now, on_scanned)
    return before + total


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    group: list[Item] = []
    until = time.monotonic() + _GROUP_S
    for item in items:
        group.append(item)
        if len(group) == _GROUP or time.monotonic() >= until:
            yield group
            group, until = [], time.monotonic() + _GROUP_S
    if group:
        yield group


def _unknown(group: list[Item], waiting: set[str], database: Database, queue: Queue) -> list[Item]:
    """What is neither in the store nor on its way there: a file may be named twice on the command line."""
    with database.read() as c:
        known = queue.known_paths(c, [i.path for i in group]) | waiting
    return list({i.path: i for i in group if i.path not in known}.values())


def _store(
    chunk: Sequence[Item],
    task: Task[list[NewItem]],
    database: Database,
    queue: Queue,
    pool: Pool,
    now: float,
    on_scanned: Callable[[int], None],
) -> None:
    try:
        scanned = pool.result(task)
    except NoWorkerError:
        raise
    except Exception:  # noqa: BLE001 (whatever it was, one item of the chunk is to blame)
        scanned = [_scan_alone(item, pool) for item in chunk]
    try:
        with database.begin() as c:
            queue.add(c, scanned, now=now)
    except Exception as e:
        if is_trouble(e):
            raise
        # a header that the store cannot hold costs its own item
        for item in scanned:
            _store_alone(item, database, queue, now)
    on_scanned(len(scanned))


def _scan_alone(item: Item, pool: Pool) -> NewItem:
    try:
        return pool.result(pool.submit(scan, [item]))[0]
    except WorkerCrashedError:
        why = Rejection(reason=Reason.DECODER_CRASHED, detail="while its header was read")
    except NoWorkerError:
        raise
    except Exception as e:  # noqa: BLE001 (one item's trouble is that item's row)
        why = unexpected(e)
    return NewItem(path=item.path, location=item.location(), rejection=why)


def _store_alone(item: NewItem, database: Database, queue: Queue, now: float) -> None:
    """Raises StoreError, StorageFullError where the store is in trouble, or refuses even the bare row."""
    try:
        with database.begin() as c:
            queue.add(c, [item], now=now)
    except Exception as e:
        if is_trouble(e):
            raise
        bare = NewItem(path=item.path, location=item.location, rejection=unexpected(e))
        with database.begin() as c:
            queue.add(c, [bare], now=now)
