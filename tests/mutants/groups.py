"""Which tests must notice a change in which modules: the quickest that are meant to, none that starts a whole node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """The tests run in this order, those that reach the changed line first."""

    modules: tuple[str, ...]  # patterns of pathlib, from the root of the tree
    tests: tuple[str, ...]


_NETWORK = (
    "association", "client_certificate", "commit_report", "commitment", "dimse", "limits", "negotiation", "probe",
    "requestor", "scp", "scu", "sockets", "status", "storing", "tls",
)  # fmt: skip
_NETWORK_TESTS = (
    "association", "wire_bounds", "network_bounds", "negotiation", "sockets", "storing", "flat_bounds",
    "client_certificate", "commit_report", "listener_addresses", "listener_words", "probe", "requestor", "scp",
    "scp_bounds", "scu", "scu_bounds", "scu_reports", "tls", "tls_words",
)  # fmt: skip
_DATA_SET = (
    "__init__", "budget", "codecs", "codestream", "flat", "fragments", "header", "identity", "needed", "orientation",
    "pixels", "read", "references", "runlength", "select", "tone", "uids",
)  # fmt: skip

GROUPS = {
    "store": Group(
        ("cxrnode/store/*.py",),
        ("tests/contract/test_store.py", "tests/contract/test_queue_bounds.py", "tests/contract/test_studies_bounds.py",
         "tests/contract/test_outbox.py", "tests/contract/test_outbox_bounds.py", "tests/unit/store"),
    ),
    "retention": Group(
        ("cxrnode/retention.py", "cxrnode/clock.py"), ("tests/unit/test_retention.py", "tests/unit/test_clock.py")
    ),
    "analyse": Group(
        ("cxrnode/analyse.py", "cxrnode/in_hand.py", "cxrnode/outcomes.py", "cxrnode/duplicates.py",
         "cxrnode/outlast.py"),
        ("tests/unit/test_analyse_bounds.py", "tests/unit/test_in_hand.py", "tests/unit/test_analyse.py",
         "tests/unit/test_outlast.py"),
    ),
    "network": Group(
        tuple(f"cxrnode/dicom/{name}.py" for name in _NETWORK),
        (*(f"tests/unit/dicom/test_{name}.py" for name in _NETWORK_TESTS), "tests/unit/test_intake.py",
         "tests/unit/test_commit.py"),
    ),
    "dicom": Group(
        tuple(f"cxrnode/dicom/{name}.py" for name in _DATA_SET),
        ("tests/unit/dicom/test_wire_bounds.py", "tests/unit/dicom/test_flat_bounds.py",
         "tests/unit/dicom/test_references.py", "tests/unit/dicom/test_select.py",
         "tests/unit/dicom/test_select_codes.py", "tests/unit/dicom/test_tone_bounds.py",
         "tests/unit/dicom/test_codestream_bounds.py", "tests/unit/dicom/test_pixels_bounds.py",
         "tests/unit/dicom/test_codecs_bounds.py",
         "tests/unit/dicom/test_orientation.py", "tests/unit/dicom/test_header.py", "tests/unit/dicom/test_read.py",
         "tests/unit/dicom/test_pixels.py"),
    ),
    "text": Group(
        ("cxrnode/dicom/text.py", "cxrnode/dicom/verbatim.py"),
        ("tests/unit/report/test_character_sets.py", "tests/unit/report/test_source.py",
         "tests/unit/report/test_dirty.py", "tests/unit/dicom/test_header.py", "tests/unit/dicom/test_read.py"),
    ),
    "report": Group(("cxrnode/report/*.py",), ("tests/unit/report",)),
    "audit": Group(("cxrnode/audit/*.py",), ("tests/unit/audit",)),
}  # fmt: skip
