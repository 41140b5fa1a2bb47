"""A plan is loaded only where every word of its sidecar fits; everything else is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineError
from engines.bundle import MODEL
from engines.plan import (
    PRECISIONS,
    Machine,
    Plan,
    Sidecar,
    list_sidecars,
    plan_path,
    read_plan,
    read_sidecar,
    write_plan,
)
from tests.support.bundles import make_bundle

BUNDLE = make_bundle()
MACHINE = Machine(gpu="NVIDIA L4", compute_capability="8.9", driver="580.82", module="tensorrt", version="11.4.0.15")
DATA = b"a plan" * 1000


def sidecar_of(data: bytes = DATA, **changes: Any) -> Sidecar:
    return Sidecar(
        **{
            "bundle": BUNDLE.name, "bundle_digest": BUNDLE.digest, "onnx_sha256": BUNDLE.manifest.files[MODEL],
            "plan_sha256": hashlib.sha256(data).hexdigest(), **dataclasses.asdict(MACHINE), "precision": "fp16",
            "optimal": 8, "largest": 32, "hardware_compatibility": "none", "built_at": datetime(2026, 1, 2, tzinfo=UTC),
            **changes,
        }
    )  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Plan:
    return write_plan(tmp_path / "cache", BUNDLE, sidecar_of(), DATA)


def read(written: Plan, **changes: str) -> Plan:
    return read_plan(written.path.parent, BUNDLE, dataclasses.replace(MACHINE, **changes), "fp16")


def test_what_was_written_is_read(written: Plan) -> None:
    assert read(written) == written
    assert list_sidecars(written.path.parent) == [written.path.with_suffix(".json")]
    assert read_sidecar(written.path.with_suffix(".json")) == written.sidecar
    assert sorted(os.listdir(written.path.parent)) == [f"{written.path.stem}.json", written.path.name]
    assert written.path.stat().st_mode & 0o077 == 0  # it is run as code


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"gpu": "NVIDIA A10", "compute_capability": "8.6"},
            r"another GPU \(NVIDIA L4, compute capability 8.9; this is",
        ),
        ({"gpu": "NVIDIA L40S"}, "another GPU"),
        ({"driver": "590.1"}, "driver was 580.82, is 590.1"),
        ({"version": "11.5"}, "tensorrt version was 11.4.0.15, is 11.5"),
        ({"module": "tensorrt_rtx"}, "library was tensorrt, is tensorrt_rtx"),
        ({"driver": "1", "gpu": "NVIDIA T4"}, "another GPU.*; driver was"),
    ],
)
def test_another_machine_is_named(written: Plan, changes: dict[str, str], words: str) -> None:
    with pytest.raises(EngineError, match=f"{words}.*: build it again"):
        read(written, **changes)


@pytest.mark.parametrize(
    ("level", "gpu", "capability", "fits"),
    [
        ("none", "NVIDIA L40S", "8.9", False),
        ("same_compute_capability", "NVIDIA L40S", "8.9", True),
        ("same_compute_capability", "NVIDIA A10", "8.6", False),
        ("ampere_plus", "NVIDIA H100", "9.0", True),
        ("ampere_plus", "NVIDIA B200", "10.0", True),
        ("ampere_plus", "NVIDIA T4", "7.5", False),
    ],
)
def test_a_compatible_plan_runs_on_other_gpus(
    tmp_path: Path, level: str, gpu: str, capability: str, fits: bool
) -> None:
    written = write_plan(tmp_path, BUNDLE, sidecar_of(hardware_compatibility=level), DATA)
    if fits:
        assert read(written, gpu=gpu, compute_capability=capability) == written
    else:
        with pytest.raises(EngineError, match="another GPU"):
            read(written, gpu=gpu, compute_capability=capability)


@pytest.mark.parametrize(
    ("data", "words"),
    [(DATA[:-1], r"\(5999 bytes\) was changed or cut short"), (DATA[::-1], "changed or cut short"), (b"", "is empty")],
)
def test_a_damaged_plan_is_named(written: Plan, data: bytes, words: str) -> None:
    written.path.write_bytes(data)
    with pytest.raises(EngineError, match=words):
        read(written)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "int8"}, "precision was int8, is fp16"),
        ({"bundle_digest": "0" * 64}, "bundle digest was 0"),
        ({"bundle": "other"}, "bundle was other"),
        ({"onnx_sha256": "1" * 64}, "model's sha256 was 1"),
        ({"plan_sha256": "2" * 64}, "changed or cut short"),
        ({"plan_sha256": "none"}, r"describes no engine file \(plan_sha256:"),
        ({"largest": 0}, "describes no engine file"),
        ({"optimal": 33}, "optimal batch 33 is above the largest"),
        ({"smallest": 4}, "describes no engine file"),
        ({"compute_capability": "ada"}, "describes no engine file"),
        ({"built_at": "yesterday"}, "describes no engine file"),
        ({"extra": 1}, "describes no engine file"),
    ],
)
def test_a_sidecar_that_lies_is_named(written: Plan, changes: dict[str, Any], words: str) -> None:
    path = written.path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(EngineError, match=words):
        read(written)


@pytest.mark.parametrize("junk", [b"", b"{", b"null", b"\xff\xfe"])
def test_a_sidecar_that_is_none_is_named(written: Plan, junk: bytes) -> None:
    written.path.with_suffix(".json").write_bytes(junk)
    with pytest.raises(EngineError, match="describes no engine file"):
        read(written)


def test_one_without_the_other_is_no_plan(written: Plan, tmp_path: Path) -> None:
    sidecar = written.path.with_suffix(".json")
    kept = sidecar.read_bytes()
    sidecar.unlink()
    with pytest.raises(EngineError, match="no engine has been built"):
        read(written)
    sidecar.write_bytes(kept)
    written.path.unlink()
    assert list_sidecars(written.path.parent) == []
    with pytest.raises(EngineError, match=r"cannot be read \(No such file"):
        read(written)
    with pytest.raises(EngineError, match="no engine has been built"):
        read_plan(tmp_path / "nowhere", BUNDLE, MACHINE, "fp16")


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_build_that_dies_while_it_writes_leaves_nothing_to_load(
    written: Plan, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the plan's or at the sidecar's fsync: neither a new plan under an old sidecar, nor half a file."""
    calls = iter(range(1, 100))
    real = os.fsync

    def fsync(handle: int) -> None:
        if next(calls) == 2 * dies_at - 1:  # each file, then its folder
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    new = b"another plan"
    with pytest.raises(EngineError, match="No space left on device"):
        write_plan(written.path.parent, BUNDLE, sidecar_of(new), new)
    with pytest.raises(EngineError, match="no engine has been built"):
        read(written)
    assert os.listdir(written.path.parent) == [written.path.name]
    assert write_plan(written.path.parent, BUNDLE, sidecar_of(new), new).data == read(written).data


def test_each_precision_and_each_bundle_has_a_plan_of_its_own(tmp_path: Path) -> None:
    bundles = BUNDLE, make_bundle(version="2.0.0")
    paths = {plan_path(tmp_path, bundle, precision) for bundle in bundles for precision in PRECISIONS}
    assert len(paths) == 6
