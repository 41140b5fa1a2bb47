"""Which tests must notice a change in which modules: the quickest that are meant to, none that starts a whole node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """The tests run in this order, those that reach the changed line first."""

    modules: tuple[str, ...]  # patterns of pathlib, from the root of the tree
    tests: tuple[str, ...]


GROUPS = {
    "store": Group(
        ("cxrnode/store/*.py",),
        ("tests/contract/test_store.py", "tests/contract/test_queue_bounds.py", "tests/contract/test_studies_bounds.py",
         "tests/contract/test_outbox.py", "tests/contract/test_outbox_bounds.py", "tests/unit/store"),
    ),
    "retention": Group(("cxrnode/retention.py",), ("tests/unit/test_retention.py",)),
    "analyse": Group(
        ("cxrnode/analyse.py", "cxrnode/in_hand.py", "cxrnode/outcomes.py", "cxrnode/duplicates.py"),
        ("tests/unit/test_analyse_bounds.py", "tests/unit/test_in_hand.py", "tests/unit/test_analyse.py"),
    ),
    "dicom": Group(("cxrnode/dicom/*.py",), ("tests/unit/dicom", "tests/unit/test_intake.py")),
    "report": Group(("cxrnode/report/*.py",), ("tests/unit/report",)),
    "audit": Group(("cxrnode/audit/*.py",), ("tests/unit/audit",)),
}  # fmt: skip
