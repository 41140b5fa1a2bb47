"""The choice of an engine where there is no GPU; with one: tests/faults/test_gpu_choice.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx")

from engines.base import EngineError
from engines.bundle import load_bundle
from engines.cpu import CpuEngine
from engines.load import best_precision, make_engine, plans_folder
from engines.probe import driver_installed
from tests.contract.tiny import seal, tiny_batch, tiny_bundle

no_driver = pytest.mark.skipif(driver_installed(), reason="this machine has an NVIDIA driver")


@no_driver
def test_without_a_driver_auto_is_the_cpu_engine_and_asks_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    told: list[str] = []
    engine = make_engine("auto", tiny_bundle(tmp_path), on_fallback=told.append)
    assert isinstance(engine, CpuEngine)
    engine.activate()
    engine.deactivate()
    assert not told


@no_driver
def test_without_a_driver_tensorrt_refuses_and_says_what_is_missing(tmp_path: Path) -> None:
    engine = make_engine("tensorrt", tiny_bundle(tmp_path))
    with pytest.raises(EngineError, match=r"TensorRT cannot be used here: driver library.*install NVIDIA's driver"):
        engine.activate()
    with pytest.raises(EngineError, match="not active"):
        engine.infer(tiny_batch(1))
    engine.deactivate()
    assert engine.name == "gpu"


def test_an_engine_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine 'tpu': choose one of auto, cpu, cpu-bf16, cpu-int8, tensorrt"):
        make_engine("tpu", tiny_bundle(tmp_path))


def test_a_bundle_without_a_tolerance_for_a_gpu_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    assert best_precision(bundle, tmp_path) == "fp32"
    tolerance = {"int8": bundle.manifest.tolerance["fp32"]}
    seal(bundle.folder, bundle.manifest.model_copy(update={"tolerance": tolerance}))
    with pytest.raises(EngineError, match="states no tolerance for fp16 or fp32"):
        best_precision(load_bundle(str(bundle.folder)), tmp_path)


def test_plans_lie_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plans_folder() == tmp_path / "cxrnode" / "engines"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert plans_folder() == tmp_path / "me" / ".cache" / "cxrnode" / "engines"


def test_plans_lie_in_the_services_cache_where_systemd_made_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CacheDirectory=cxrnode more: what systemd.exec(5) passes on, to a user that need have no home."""
    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path}/cxrnode:{tmp_path}/more")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert plans_folder() == tmp_path / "cxrnode" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # what `cxrnode engine build` is given to write there
    monkeypatch.delenv("CACHE_DIRECTORY")
    assert plans_folder() == tmp_path / "cxrnode" / "engines"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(EngineError, match=r"home, /nonexistent, is not there: set XDG_CACHE_HOME.*CacheDirectory="):
        plans_folder()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plans_folder().mkdir(parents=True, mode=0o700)
    assert plans_folder().is_dir()
    plans_folder().chmod(mode)
    with pytest.raises(EngineError, match=r"others may write to .*chmod 700"):
        plans_folder()


def test_a_cache_that_is_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="set XDG_CACHE_HOME"):
        plans_folder()
