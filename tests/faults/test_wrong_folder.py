"""An empty mount point, or another folder, in the place of the data folder: nothing is judged, sent or deleted."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cxrnode.commit import CommitmentAnswers
from cxrnode.errors import DataDirAwayError
from cxrnode.store.commitments import Commitments
from cxrnode.store.data_dir import DataDir, establish
from cxrnode.store.database import Database
from cxrnode.types import Destination
from cxrnode.workers import Output, decode
from engines.bundle import load_bundle
from tests.support.clock import swept
from tests.support.faulty_pacs import faulty_pacs
from tests.support.outbox import queue_up, states
from tests.support.store import CR, header
from tests.unit.test_deliver import delivering
from tests.unit.test_retention import files, finished, retention


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "node.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def there(database: Database, root: Path) -> DataDir:
    return establish(database, root, make=True)


def test_retention_deletes_nothing_in_another_folder(
    database: Database, root: Path, there: DataDir, tmp_path: Path
) -> None:
    finished(database, root, 1, 1)
    keeper = replace(retention(database, root, days=0), check=there.check)
    right = root.rename(tmp_path / "right")
    other = Database(tmp_path / "other.sqlite")
    establish(other, root, make=True)
    other.close()
    for path in files(right):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"another node's")
    before = files(root)
    assert before
    with pytest.raises(DataDirAwayError, match="another database's"):
        swept(keeper)
    assert files(root) == files(right) == before


def test_no_commitment_is_refused_and_no_result_while_the_folder_is_away(
    database: Database, root: Path, there: DataDir, tmp_path: Path
) -> None:
    with faulty_pacs() as pacs:
        uids = queue_up(database, root, pacs.destination)
        right = root.rename(tmp_path / "right")
        root.mkdir()
        answers = CommitmentAnswers(
            database=database, commitments=Commitments("intake"), root=root, calling_ae_title="CXRNODE",
            peers={("PACS", "127.0.0.1"): Destination(ae_title="X", host="127.0.0.1", port=1)}, check=there.check,
        )  # fmt: skip
        with database.begin() as c:
            answers.commitments.ask(c, "2.25.4711", "PACS", "127.0.0.1", [(CR, header(1, 1).sop_instance_uid)])
        with pytest.raises(DataDirAwayError):
            answers.step()
        with delivering(database, root, pacs.destination, check=there.check):
            time.sleep(0.5)
            assert {state for state, _ in states(database, pacs.destination.key).values()} == {"pending"}
            root.rmdir()
            right.rename(root)
            deadline = time.monotonic() + 60
            while list(pacs.stored) != uids and time.monotonic() < deadline:
                time.sleep(0.05)
        assert sorted(pacs.stored) == sorted(uids)


def test_a_worker_says_of_a_share_that_is_gone_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ESTALE, ENOTCONN, ...: nothing about the file; EIO and ENOENT: an outcome, where the folder is there."""
    location = {"container": str(tmp_path / "film.dcm"), "kind": "file"}
    shape = load_bundle("default").manifest.input
    for number, away in ((errno.ESTALE, True), (errno.ENOTCONN, True), (errno.EIO, False), (errno.ENOENT, False)):

        def fails(_path: Path, number: int = number) -> None:
            raise OSError(number, "its words")

        with monkeypatch.context() as patched:
            patched.setattr("cxrnode.location.open_regular", fails)
            decoded = decode(location, shape)
        assert decoded.rejection
        assert (decoded.rejection.reason.value, decoded.away) == ("unreadable_file", away)


def test_what_is_written_into_an_empty_mount_point_does_not_count(root: Path, there: DataDir, tmp_path: Path) -> None:
    output = Output(root=root, data_dir=there)

    def write(error: Exception | None) -> None:
        with output.there():
            root.rename(tmp_path / "right")
            if error:
                raise error

    for error in (None, FileNotFoundError()):
        with pytest.raises(DataDirAwayError):
            write(error)
        (tmp_path / "right").rename(root)
