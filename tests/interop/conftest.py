"""Real peers. Where one is missing its tests are skipped, or fail if CXRNODE_REQUIRE names `interop`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.orthanc import Orthanc, missing_orthanc, running_orthanc
from tests.support.validators import missing_validators

PACKAGES = (
    "dcmtk dicom3tools orthanc orthanc-dicomweb libpixelmed-java default-jdk-headless postgresql prometheus rsyslog "
    "rsyslog-openssl strace"
)


def require(missing: list[str]) -> None:
    """Skip, or fail under CXRNODE_REQUIRE=interop: a check that silently did not run would read as passed."""
    if not missing:
        return
    message = f"missing: {', '.join(missing)}: apt-get install {PACKAGES}"
    if "interop" in os.environ.get("CXRNODE_REQUIRE", "").replace(",", " ").split():
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def validators() -> None:
    """Needs every public validator."""
    require(missing_validators())


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One Orthanc for the session; tests tell their studies apart by UID."""
    require(missing_orthanc())
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as peer:
        yield peer
