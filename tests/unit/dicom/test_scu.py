"""What the sender says of a peer that will not have it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pynetdicom.acse import ACSE

from cxrnode.dicom.probe import probe
from cxrnode.dicom.scu import SendError, StoreScu
from cxrnode.types import Destination
from tests.support.receiving import running_node


@pytest.mark.parametrize("late_s", [0.0, 0.5], ids=["at-once", "on-a-busy-machine"])
def test_a_rejection_is_told_however_late_this_thread_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_s: float
) -> None:
    """The peer rejects and closes at once: pynetdicom's caller may wake up only when the connection is gone."""
    request = ACSE.send_request

    def request_and_dawdle(acse: ACSE) -> None:
        request(acse)
        time.sleep(late_s)

    monkeypatch.setattr(ACSE, "send_request", request_and_dawdle)
    with running_node(tmp_path / "var") as node:
        nobody = Destination(ae_title="NOBODY", host="127.0.0.1", port=node.port)
        with pytest.raises(SendError, match="association rejected"):
            StoreScu(nobody).open()
        with (
            pytest.raises(SendError, match="Called AE title not recognised"),
            probe(nobody, calling_ae_title="CXRNODE"),
        ):
            pass
