"""A bundle is whole or it is refused, by the name of the file at fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from engines.base import EngineError
from engines.bundle import CARD, GOLDEN, MANIFEST, MODEL, find_bundle, load_bundle, shipped_bundles
from engines.load import make_engine
from tests.contract.tiny import write_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny")


def edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", [MODEL, GOLDEN, CARD])
def test_a_changed_file_is_named(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(EngineError, match=f"{name} does not match its sha256"):
        load_bundle(str(folder))


@pytest.mark.parametrize("name", [MODEL, GOLDEN, CARD])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(EngineError, match=f"{name} is missing"):
        load_bundle(str(folder))


def test_the_digest_changes_with_the_manifest(folder: Path) -> None:
    before = load_bundle(str(folder)).digest
    edit(folder, version="9")
    assert load_bundle(str(folder)).digest != before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preprocess_version": 99}, "preprocessing version 99"),
        ({"files": {}}, "lists no sha256"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../up"}, "name"),
        ({"labels": []}, "labels"),
    ],
)
def test_a_bad_manifest_is_refused(folder: Path, changes: dict[str, object], words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(EngineError, match=words):
        load_bundle(str(folder))


def test_a_file_outside_the_folder_is_refused(folder: Path) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    edit(folder, files=files | {"../other": "ab" * 32})
    with pytest.raises(EngineError, match="other is missing"):
        load_bundle(str(folder))


def test_an_unknown_bundle_is_told_what_there_is() -> None:
    with pytest.raises(EngineError, match="one of: "):
        find_bundle("no-such-bundle")


@pytest.mark.parametrize("folder", shipped_bundles(), ids=lambda p: p.name)
def test_what_ships_is_whole_and_runs(folder: Path) -> None:
    bundle = load_bundle(str(folder))
    assert bundle.name == folder.name
    assert sum(f.stat().st_size for f in folder.iterdir()) < 60 * 2**20
    assert "research use, not for diagnosis" in (folder / CARD).read_text().lower()
    engine = make_engine("auto", bundle)
    engine.activate()
    engine.deactivate()
