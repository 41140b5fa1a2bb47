"""The locks pin all that pyproject.toml asks for, and this environment is what they pin."""

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.locks import ROOT, pins, version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED = {
    "requirements.lock": PROJECT["dependencies"] + EXTRAS["postgres"],
    "requirements-dev.lock": PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["train"],
}


@pytest.mark.parametrize("lock", ASKED)
def test_a_lock_pins_what_is_asked_for(lock: str) -> None:
    locked = pins(lock)
    for text in ASKED[lock]:
        asked = Requirement(text)
        assert asked.specifier.contains(version(locked[canonicalize_name(asked.name)])), text


@pytest.mark.parametrize("lock", [*ASKED, "deploy/demo/requirements.lock"])
def test_every_pin_has_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = [e for e in re.split(r"(?m)^(?=[a-z])", text) if not e.startswith("#")]
    assert entries
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_the_locks_agree() -> None:
    dev = pins("requirements-dev.lock")
    for lock in ("requirements.lock", "deploy/demo/requirements.lock"):
        assert {n: version(p) for n, p in pins(lock).items()}.items() <= {n: version(p) for n, p in dev.items()}.items()


def test_this_environment_is_the_locks() -> None:
    here = {n: p for n, p in pins("requirements-dev.lock").items() if p.marker is None or p.marker.evaluate()}
    assert {n: metadata.version(n) for n in here} == {n: version(p) for n, p in here.items()}


def test_every_package_of_the_node_has_its_licence_told() -> None:
    told = re.findall(r"(?m)^\| ([\w-]+) \| ([^|]+) \|", (ROOT / "docs/licences.md").read_text())
    named = {name: licence.strip() for name, licence in told if name != "package"}
    assert named.keys() == pins("requirements.lock").keys()
    assert not [name for name, licence in named.items() if not licence or re.search(r"(?<!L)GPL", licence)]
