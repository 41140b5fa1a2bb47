"""Stubs of TensorRT's bindings, made from the installed module, and mypy run against them.

They are made anew where they are used: 11,000 lines that follow the wheel need not be kept. `tensorrt_rtx` has the API
of TensorRT 11, without what that removed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")
_MENDED = {  # what the bindings say of themselves and no interpreter reads, and the buffer of which they say nothing
    "(self, in: ": "(self, in_: ",
    "(self: IPluginV3, in: ": "(self: IPluginV3, in_: ",
    ", channel_axis: typing.SupportsInt)": ", channel_axis: typing.SupportsInt = ...)",
    "class IHostMemory:\n": "class IHostMemory:\n    def __buffer__(self, flags: int, /) -> memoryview: ...\n",
}


def make_stubs(folder: Path) -> Path:
    """Write stubs of both packages that make up `tensorrt_rtx` into `folder`."""
    for module in _MODULES:
        command = [sys.executable, "-m", "pybind11_stubgen", module, "--ignore-all-errors", "-o", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    written = folder / "tensorrt_rtx_bindings" / "tensorrt_rtx.pyi"
    text = written.read_text()
    for said, meant in _MENDED.items():
        text = text.replace(said, meant)
    written.write_text(text)
    return folder


def check_types(stubs: Path, *files: Path) -> tuple[int, str]:
    """mypy --strict of `files` with the bindings' real signatures: exit status, and what it printed of these files."""
    config = stubs / "mypy.ini"
    config.write_text(
        f"[mypy]\nstrict = true\nmypy_path = {stubs}:{ROOT}\nexplicit_package_bases = true\nfollow_imports = silent\n"
        "plugins = pydantic.mypy\n[mypy-onnx.*,onnxruntime.*,pycuda.*,cv2.*]\nignore_missing_imports = true\n"
        "[mypy-tensorrt_rtx.*,tensorrt_rtx_bindings.*]\nignore_errors = true\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(stubs / "cache")]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout + done.stderr
