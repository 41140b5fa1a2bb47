"""A missing peer skips its tests, and fails them where the run says that it has every peer."""

from __future__ import annotations

import pytest

from tests.interop.conftest import require


def test_a_missing_peer_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXRNODE_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install"):
        require(["/usr/bin/dciodvfy"])


def test_a_missing_peer_fails_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRNODE_REQUIRE", "postgres,interop")
    with pytest.raises(pytest.fail.Exception, match="dciodvfy"):
        require(["/usr/bin/dciodvfy"])


def test_nothing_missing_is_no_matter() -> None:
    require([])
