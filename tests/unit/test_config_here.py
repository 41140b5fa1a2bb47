"""Whether this user can work in a data folder, beside a node that works in it."""

from __future__ import annotations

import threading
from pathlib import Path

from cxrnode.config_here import check_data_dir


def test_a_file_that_goes_meanwhile_is_no_fault(tmp_path: Path) -> None:
    """A running node makes and deletes files of a moment, and its stages look one after the other."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            (tmp_path / ".proof").touch()
            (tmp_path / ".proof").unlink()

    node = threading.Thread(target=work)
    node.start()
    try:
        for _ in range(2000):
            check_data_dir(tmp_path)
    finally:
        over.set()
        node.join()
