"""Who does what, and with which model."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from cxrnode.audit.record import operator, os_user, record_model
from cxrnode.store import ledger
from cxrnode.store.database import Database
from tests.support.bundles import make_bundle


def test_the_user_is_the_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert os_user() == pwd.getpwuid(os.getuid()).pw_name
    assert operator() == f"operator:{os_user()}"


def test_a_user_without_an_account_is_a_number_and_a_long_name_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert (os_user(), operator()) == ("uid 4000000", "operator:uid 4000000")
    long = pwd.struct_passwd(("u" * 40, "x", 1, 1, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: long)
    assert os_user() == "u" * 32


def test_what_a_digest_stands_for(tmp_path: Path) -> None:
    database, bundle = Database(tmp_path / "x.sqlite"), make_bundle()
    with database.begin() as c:
        record_model(c, bundle, actor="analyse")
        (e,) = ledger.events(c)
    database.close()
    assert (e.kind, e.actor, e.study_instance_uid) == ("model_loaded", "analyse", None)
    assert e.detail == {
        "model": bundle.digest, "name": "cxr3-test", "version": "1.0.0", "weights": "ab" * 32,
        "labels": [{"name": n, "present_at": 0.5, "absent_below": 0.2} for n in ("covid", "viral", "normal")],
    }  # fmt: skip
