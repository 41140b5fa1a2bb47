"""Peers that are refused, or send no DICOM, thousands of times: few lines, few records, every one counted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tests.support.make_dicom import chest, write
from tests.support.node import Node, running_node
from tests.support.raw import exchange
from tests.support.receiving import associate_rq

CR, EXPLICIT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1"
ABORT, REJECT = 7, 3
EACH = 1000
TITLES = [*["CT1"] * EACH, *(f"SCAN{n}" for n in range(EACH))]  # a peer that is set up wrongly, and one that guesses
REJECTED = [associate_rq((1, CR, EXPLICIT), calling=title) for title in TITLES]
LENGTHS = range(1 << 20, (1 << 20) + EACH)  # of an A-ASSOCIATE-RQ: each another one, and all too long
MALFORMED = [b"\x16\x03\x01" + bytes(50)] * EACH + [b"\x01\x00" + n.to_bytes(4, "big") for n in LENGTHS]


def attack(node: Node, requests: Iterable[bytes]) -> list[int]:
    """What each was answered with: the type of the PDU. One after the other: the oldest of many makes room."""
    return [exchange(node.port, request)[0] for request in requests]


def metric(page: str, name: str) -> dict[str, float]:
    found = re.findall(rf'^{name}_total{{reason="(.*)"}} (\S+)$', page, re.MULTILINE)
    return {reason: float(value) for reason, value in found}


def test_a_flood_fills_neither_log_nor_ledger_and_is_counted(tmp_path: Path) -> None:
    film = tmp_path / "film"
    write(chest(64, 64), film)
    with running_node(Node(folder=tmp_path / "node", extra='[log]\nlevel = "debug"')) as node:
        before = len(node.log.splitlines())
        assert attack(node, REJECTED[:EACH]) == [REJECT] * EACH
        assert attack(node, MALFORMED[:EACH]) == [ABORT] * EACH
        assert node.send(film) == [0]
        assert attack(node, REJECTED[EACH:]) == [REJECT] * EACH
        assert attack(node, MALFORMED[EACH:]) == [ABORT] * EACH
        assert node.send(film) == [0]
        page = node.http("/metrics").decode()
        assert metric(page, "cxrnode_receive_associations_rejected") == {"calling AE title not recognised": 2 * EACH}
        assert metric(page, "cxrnode_receive_connections_aborted") == {
            "unrecognised PDU": EACH, "invalid PDU parameter": EACH,
        }  # fmt: skip
        node.stop()
        told = [line for line in node.log.splitlines()[before:] if re.search("rejected|aborted", line)]
        assert len(told) < 100
        assert sum(int((re.search(r"the last of (\d+) since", line) or [0, 1])[1]) for line in told) == 4 * EACH
        counts = node.rows(
            "SELECT kind, count(*), sum(json_extract(detail, '$.count')) FROM ledger "
            "WHERE kind IN ('association_rejected', 'association_aborted') GROUP BY kind ORDER BY kind"
        )
    assert [(kind, total) for kind, _, total in counts] == [
        ("association_aborted", 2 * EACH), ("association_rejected", 2 * EACH),
    ]  # fmt: skip
    assert all(records < 50 for _, records, _ in counts)
