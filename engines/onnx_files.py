"""Does an ONNX model keep tensors in other files? A bundle's digest covers model.onnx alone, and nothing that it names.

A walk over the encoded model by the field numbers of onnx.proto, before any library opens it: to run one takes no onnx,
and onnxruntime would read such files at once, wherever their paths lead.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from engines.base import EngineError

# message -> number of a field that leads to a tensor -> its message (onnx.proto, IR version 3 and later)
_LEADS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "function": {7: "node", 11: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}  # fmt: skip
_NAME, _EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 8, 13, 14, 1  # of TensorProto
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(
    6
)  # wire types (protobuf.dev/programming-guides/encoding)
_DEEPEST = 100  # messages in each other, as protobuf itself allows

Value = int | tuple[int, int]  # a number, or where the bytes of a field begin and end


class _MalformedError(Exception):
    pass


def check_one_file(path: Path) -> None:
    """Raises EngineError for a model that wants other files too, or is none."""
    try:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            name = _external(data, (0, len(data)), "model", 0)
    except (_MalformedError, ValueError) as e:  # ValueError: an empty file
        raise EngineError(f"{path} is not an ONNX model: export the bundle again") from e
    except OSError as e:
        raise EngineError(f"cannot read {path}: {e.strerror}. May this user read it?") from e
    if name is not None:
        raise EngineError(
            f"{path} keeps the values of {name!r} in another file, which the bundle's digest does not cover: put all "
            "into one (in Python: onnx.save(onnx.load('model.onnx'), 'model.onnx')), and export the bundle again"
        )


def _external(data: mmap.mmap, where: tuple[int, int], message: str, depth: int) -> str | None:
    """The name of the first tensor whose values lie elsewhere."""
    if depth > _DEEPEST:
        raise _MalformedError
    leads, name, elsewhere = _LEADS[message], "", False
    for number, value in _fields(data, *where):
        if isinstance(value, tuple) and number in leads:
            found = _external(data, value, leads[number], depth + 1)
            if found is not None:
                return found
        elif message == "tensor" and isinstance(value, tuple):
            name = data[slice(*value)].decode("utf-8", "replace") if number == _NAME else name
            elsewhere |= number == _EXTERNAL_DATA
        elif message == "tensor":
            elsewhere |= number == _DATA_LOCATION and isinstance(value, int) and value & 0xFFFFFFFF == _EXTERNAL
    return name if elsewhere else None


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field of a message; groups, of which onnx.proto has none, are skipped whole."""
    open_groups = 0
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        value: Value = 0
        if wire == _VARINT:
            value, at = _varint(data, at, end)
        elif wire in {_FIXED64, _FIXED32}:
            at += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            length, at = _varint(data, at, end)
            value, at = (at, at + length), at + length
        elif wire in {_GROUP, _GROUP_END}:
            open_groups += 1 if wire == _GROUP else -1
        if wire > _FIXED32 or at > end or open_groups < 0 or number == 0:
            raise _MalformedError
        if not open_groups and wire in {_VARINT, _BYTES}:
            yield number, value
    if open_groups:
        raise _MalformedError


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _MalformedError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise _MalformedError
