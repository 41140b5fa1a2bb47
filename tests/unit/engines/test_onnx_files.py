"""A model whose tensors lie in other files is refused before anything opens it, wherever in the model they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines import onnx_files
from engines.base import EngineError
from engines.bundle import GOLDEN, MANIFEST, MODEL, load_bundle, shipped_bundles
from engines.load import make_engine
from engines.onnx_files import check_one_file
from tests.contract.tiny import seal, write_tiny
from tests.support.outbound import STRACE

WEIGHTS = np.arange(6, dtype=np.float32)


def tensor(name: str = "kept elsewhere", location: str = "weights.bin") -> TensorProto:
    made: TensorProto = numpy_helper.from_array(WEIGHTS, name)
    onnx.external_data_helper.set_external_data(made, location, offset=0, length=WEIGHTS.nbytes)
    made.ClearField("raw_data")
    return made


def sparse(*, values: bool) -> Any:
    indices = numpy_helper.from_array(np.arange(6, dtype=np.int64), "indices")
    inside = numpy_helper.from_array(WEIGHTS, "values")
    return onnx.SparseTensorProto(values=tensor() if values else inside, indices=indices if values else tensor())


def constant(**attribute: Any) -> Any:
    node = helper.make_node("Constant", [], ["x"])
    node.attribute.add(name="value", **attribute)
    return node


def graph(*nodes: Any, **more: Any) -> Any:
    return onnx.GraphProto(name="g", node=nodes, **more)


def within(inner: Any, times: int = 1) -> Any:
    """That graph as the branch of an If, in a branch of an If, ..."""
    for _ in range(times):
        branch = helper.make_node("If", ["c"], ["y"])
        branch.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH, g=inner)
        inner = graph(branch)
    return inner


PLACES: dict[str, Callable[[Any], None]] = {
    "an initializer": lambda m: m.graph.initializer.append(tensor()),
    "the last of many": lambda m: m.graph.initializer.extend([numpy_helper.from_array(WEIGHTS, "in")] * 9 + [tensor()]),
    "the values of a sparse initializer": lambda m: m.graph.sparse_initializer.append(sparse(values=True)),
    "the indices of a sparse initializer": lambda m: m.graph.sparse_initializer.append(sparse(values=False)),
    "a constant": lambda m: m.graph.node.append(constant(t=tensor())),
    "one of an attribute's tensors": lambda m: m.graph.node.append(constant(tensors=[tensor()])),
    "a sparse attribute": lambda m: m.graph.node.append(constant(sparse_tensor=sparse(values=True))),
    "one of its sparse tensors": lambda m: m.graph.node.append(constant(sparse_tensors=[sparse(values=False)])),
    "a subgraph": lambda m: m.graph.node.extend(within(graph(initializer=[tensor()])).node),
    "a subgraph of a subgraph": lambda m: m.graph.node.extend(within(graph(constant(t=tensor())), 3).node),
    "one of an attribute's graphs": lambda m: m.graph.node.append(constant(graphs=[graph(initializer=[tensor()])])),
    "a function": lambda m: m.functions.append(onnx.FunctionProto(name="f", node=[constant(t=tensor())])),
    "a function's default": lambda m: m.functions.add(name="f").attribute_proto.add(name="a", t=tensor()),
    "the training's start": lambda m: m.training_info.add().initialization.initializer.append(tensor()),
    "the training's step": lambda m: m.training_info.add().algorithm.initializer.append(tensor()),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny")


def sealed_with(folder: Path, change: Callable[[Any], None]) -> Path:
    """The bundle with its model changed, and sealed again: its digests are right."""
    manifest = load_bundle(str(folder)).manifest
    model = onnx.load(folder / MODEL)
    change(model)
    (folder / MODEL).write_bytes(model.SerializeToString())
    seal(folder, manifest)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_refused(folder: Path, place: str) -> None:
    (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
    sealed_with(folder, PLACES[place])
    with pytest.raises(EngineError, match=r"keeps the values of 'kept elsewhere' in another file.*put all into one"):
        load_bundle(str(folder))


@pytest.mark.parametrize(
    "location", ["weights.bin", "../weights.bin", "/etc/hostname", "sub/w", "", "*/_ORT_MEM_ADDR_/*"]
)
def test_wherever_it_leads(folder: Path, location: str) -> None:
    sealed_with(folder, lambda m: m.graph.initializer.append(tensor(location=location)))
    with pytest.raises(EngineError, match="in another file"):
        load_bundle(str(folder))


def _half_said(**fields: Any) -> TensorProto:
    return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[6], **fields)


@pytest.mark.parametrize(
    "half",
    [
        _half_said(data_location=TensorProto.EXTERNAL),
        _half_said(external_data=[onnx.StringStringEntryProto(key="location", value="w")]),
        _half_said(external_data=[onnx.StringStringEntryProto(key="location", value="w")], raw_data=WEIGHTS.tobytes()),
    ],
)
def test_half_of_it_is_enough(folder: Path, half: TensorProto) -> None:
    sealed_with(folder, lambda m: m.graph.initializer.append(half))
    with pytest.raises(EngineError, match="in another file"):
        load_bundle(str(folder))


def test_what_onnx_itself_saves_with_external_data_is_refused_and_mends_as_it_is_told(folder: Path) -> None:
    manifest = load_bundle(str(folder)).manifest
    model = onnx.load(folder / MODEL)
    onnx.save(model, folder / MODEL, save_as_external_data=True, location="w.data", size_threshold=0)
    seal(folder, manifest)
    with pytest.raises(EngineError, match="in another file") as said:
        load_bundle(str(folder))
    (advice,) = re.findall(r"in Python: (.*)\), and export", str(said.value))
    subprocess.run([sys.executable, "-c", f"import onnx; {advice}"], check=True, cwd=folder)
    (folder / "w.data").unlink()
    seal(folder, manifest)
    engine = make_engine("cpu", load_bundle(str(folder)))
    engine.activate()
    engine.deactivate()


def test_models_verify_refuses_it_too(folder: Path) -> None:
    sealed_with(folder, PLACES["an initializer"])
    done = subprocess.run(
        [sys.executable, "-m", "cxrnode", "models", "verify", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "in another file" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_follows_every_field_that_leads_to_a_tensor() -> None:
    """As onnx.proto has them today: a field that is new must not be a way around."""
    names: dict[str, Any] = {"model": onnx.ModelProto, "training": onnx.TrainingInfoProto, "graph": onnx.GraphProto,
                             "node": onnx.NodeProto, "function": onnx.FunctionProto, "attribute": onnx.AttributeProto,
                             "sparse": onnx.SparseTensorProto, "tensor": onnx.TensorProto}  # fmt: skip
    ours = {kind.DESCRIPTOR.full_name: name for name, kind in names.items()}

    def leads(message: Any, above: frozenset[str] = frozenset()) -> bool:
        if message.full_name == TensorProto.DESCRIPTOR.full_name:
            return True
        below = (f.message_type for f in message.fields if f.message_type is not None)
        return any(
            leads(m, above | {message.full_name}) for m in below if m.full_name not in above | {message.full_name}
        )

    for name, kind in names.items():
        if name == "tensor":
            continue
        fields = {f.number: f.message_type for f in kind.DESCRIPTOR.fields if f.message_type is not None}
        wanted = {number: ours.get(m.full_name, m.full_name) for number, m in fields.items() if leads(m)}
        assert onnx_files._LEADS[name] == wanted
    assert {f.name: f.number for f in TensorProto.DESCRIPTOR.fields if f.number in {8, 13, 14}} == {
        "name": onnx_files._NAME, "external_data": onnx_files._EXTERNAL_DATA,
        "data_location": onnx_files._DATA_LOCATION,
    }  # fmt: skip


# --- encodings that say the same


def _varint(n: int, *, length: int = 1) -> bytes:
    """n, with `length` bytes at least: protobuf takes those that are longer than they need be."""
    out = bytearray()
    while n or len(out) < length:
        out.append((n & 0x7F) | 0x80)
        n >>= 7
    out[-1] &= 0x7F
    return bytes(out)


def _field(number: int, content: bytes, *, length: int = 1) -> bytes:
    return _varint(number << 3 | 2, length=length) + _varint(len(content), length=length) + content


@pytest.mark.parametrize(
    "location", [b"\x70\x01", b"\xf0\x00\x81\x00", b"\x70\x81\x80\x80\x80\x90\x80\x80\x80\x80\x00"]
)
def test_another_encoding_of_the_same_is_refused(tmp_path: Path, location: bytes) -> None:
    for length in (1, 2, 5):
        unknown = b"\x9b\x06" + _field(3, b"x") + b"\x9c\x06" + b"\xa1\x06" + bytes(8) + b"\xa5\x06" + bytes(4)
        initializer = _field(5, _field(8, b"w") + location, length=length)
        path = tmp_path / "model.onnx"
        path.write_bytes(unknown + _field(7, unknown + initializer, length=length) + unknown)
        read = onnx.ModelProto.FromString(path.read_bytes())
        assert read.graph.initializer[0].data_location == TensorProto.EXTERNAL
        with pytest.raises(EngineError, match="values of 'w'"):
            check_one_file(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_none(content: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"any-{os.getpid()}.onnx"
    path.write_bytes(content)
    try:
        check_one_file(path)
    except EngineError as e:
        assert "onnx" in str(e)  # noqa: PT017
    finally:
        path.unlink()


@pytest.mark.parametrize("content", [b"", b"\x07", b"\x3a\x7f", b"\x3b", b"\x3c", b"\xff" * 11, _field(7, b"\x2a\x05")])
def test_what_is_no_model_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(EngineError, match="is not an ONNX model: export the bundle again"):
        check_one_file(tmp_path / "model.onnx")


def test_too_deep_is_said(tmp_path: Path) -> None:
    content = b""
    for _ in range(60):  # a node's attribute's graph
        content = _field(1, _field(5, _field(6, content)))
    (tmp_path / "model.onnx").write_bytes(_field(7, content))
    with pytest.raises(EngineError, match="is not an ONNX model"):
        check_one_file(tmp_path / "model.onnx")


@pytest.mark.parametrize("folder", shipped_bundles(), ids=lambda p: p.name)
def test_what_ships_is_one_file(folder: Path) -> None:
    check_one_file(folder / MODEL)


# --- nothing else is read


def test_a_link_is_what_it_leads_to(folder: Path, tmp_path: Path) -> None:
    """Installers make links of packages' files: what is hashed and what is read is the file at the end."""
    for name in (MODEL, GOLDEN):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    load_bundle(str(folder))
    (tmp_path / MODEL).write_bytes((tmp_path / MODEL).read_bytes() + b"\0")
    with pytest.raises(EngineError, match=f"{MODEL} does not match its sha256"):
        load_bundle(str(folder))
    (tmp_path / MODEL).unlink()
    with pytest.raises(EngineError, match=f"{MODEL} is missing"):
        load_bundle(str(folder))
    (folder / MODEL).unlink()
    (folder / MODEL).symlink_to(tmp_path)
    with pytest.raises(EngineError, match=f"{MODEL} is missing"):
        load_bundle(str(folder))


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_nothing_but_what_the_digest_covers_is_opened(folder: Path, tmp_path: Path) -> None:
    for unlisted in ("model.onnx.data", "model.data", "weights.bin", "config.json", "model.ort"):
        (folder / unlisted).write_text("x")
    program = (
        "import sys; from engines.bundle import load_bundle; from engines.load import make_engine\n"
        "engine = make_engine('cpu', load_bundle(sys.argv[1])); engine.activate(); engine.deactivate()"
    )
    trace = tmp_path / "trace"
    subprocess.run(
        [str(STRACE), "-f", "-qq", "-s", "4096", "-e", "trace=open,openat,openat2", "-o", str(trace),
         sys.executable, "-c", program, str(folder)], check=True, timeout=120,
    )  # fmt: skip
    opened = set(re.findall(rf'"{re.escape(str(folder))}/([^"]+)"', trace.read_text(errors="replace")))
    listed = set(load_bundle(str(folder)).manifest.files)
    assert {MODEL, GOLDEN, MANIFEST} <= opened <= listed | {MANIFEST}
