"""The real pycuda, built from its source without CUDA or a driver: NVIDIA's headers come from PyPI, libcuda is simcuda.

Needs a C++ compiler, Python's headers and PyPI (or PIP_NO_INDEX and PIP_FIND_LINKS, as pip reads them). Runs on the
real libcuda too: `python -m tests.support.pycuda_build FOLDER` leaves it in FOLDER, to be put on PYTHONPATH.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "2026.1"
# of the driver that cxrnode asks for (CUDA 13.0): newer headers would link to functions that it does not have
HEADERS = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-profiler-api==13.0.85")
_SOURCES = Path(__file__).parent / "simcuda"
# Without optimisation and one file a core, for most of the time goes into 40 files of templates one after the other.
_SITECONF = """
CUDA_ENABLE_CURAND = False
CUDA_INC_DIR = [{headers!r}]
CUDADRV_LIB_DIR = [{library!r}]
CXXFLAGS = ["-O0", "-g0", "-w"]
exec({parallel!r}, {{}})
"""
_PARALLEL = """
import os
from concurrent.futures import ThreadPoolExecutor
from distutils.ccompiler import CCompiler as Compiler  # as setuptools names its own
one_after_another = Compiler.compile
def side_by_side(self, sources, *args, **kwargs):
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return sum(pool.map(lambda source: one_after_another(self, [source], *args, **kwargs), sources), [])
Compiler.compile = side_by_side
"""


class BuildError(Exception):
    """simcuda or pycuda cannot be built here; says why."""


def build_simcuda(folder: Path) -> Path:
    """Compile simcuda into `folder`, as libcuda.so.1 and libcuda.so; returns the folder. Raises BuildError."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libcuda.so.1"
    sources = sorted(map(str, _SOURCES.glob("*.c")))
    flags = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{library.name}", "-pthread"]
    _run(os.environ.get("CC", "cc"), *flags, "-o", str(library), *sources)
    (folder / "libcuda.so").symlink_to(library.name)
    return folder


def pycuda_path() -> Path | None:
    """What to put on PYTHONPATH for pycuda; None where Python has it. Built once an environment. BuildError."""
    if importlib.util.find_spec("pycuda") is not None:
        return None
    folder = Path(sys.prefix) / "simulated-gpu" / f"pycuda-{VERSION}-{sys.implementation.cache_tag}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:  # several processes of the tests want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            build_pycuda(folder)
    return folder


def build_pycuda(folder: Path) -> None:
    """Build pycuda into `folder`, which appears only when it is whole. Raises BuildError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        _pip("install", "--no-deps", "--target", str(work / "headers"), *HEADERS)
        headers = [str(p.parent) for p in work.glob("headers/**/cuda.h")]
        if not headers:
            raise BuildError(f"{HEADERS[0]} holds no cuda.h")
        library = build_simcuda(work / "lib")
        _pip("download", "--no-deps", "--no-binary", "pycuda", "-d", str(work), f"pycuda=={VERSION}")
        with tarfile.open(work / f"pycuda-{VERSION}.tar.gz") as sdist:
            if hasattr(tarfile, "data_filter"):
                sdist.extractall(work, filter="data")
            else:  # Python 3.11 before 3.11.4
                sdist.extractall(work)
        source = work / f"pycuda-{VERSION}"
        siteconf = _SITECONF.format(headers=headers[0], library=str(library), parallel=_PARALLEL)
        (source / "siteconf.py").write_text(siteconf)
        _pip("install", "--no-deps", "--no-cache-dir", "--target", str(work / "site"), str(source))
        (work / "site").rename(folder)


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", arguments[0], "-q", "--disable-pip-version-check", *arguments[1:])


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as e:
        raise BuildError(f"{command[0]}: {e}") from e
    if done.returncode:
        raise BuildError(f"{' '.join(command[:6])} ... failed:\n{(done.stdout + done.stderr)[-3000:]}")


if __name__ == "__main__":
    build_pycuda(Path(sys.argv[1]))
