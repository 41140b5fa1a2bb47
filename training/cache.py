"""Images decoded once, squashed to the network's input as serving does, in one file that is mapped into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from engines.bundle import InputShape
from engines.preprocess import PREPROCESS_VERSION, prepare
from training.datasets import Sample, image_path, read_grey
from training.files import whole
from training.recipe import RecipeError


def decoded(data: Path, samples: Sequence[Sample], shape: InputShape, folder: Path) -> npt.NDArray[np.uint8]:
    """uint8 [N, rows, columns], mapped from a file in `folder` that is made if it is not there.

    The file's name is a digest of what it was made of, so that a changed image is decoded again. Raises RecipeError
    that names the images that cannot be read, or says that there is no room.
    """
    path = folder / f"{_digest(data, samples, shape)}.npy"
    size = (len(samples), shape.rows, shape.columns)
    found = _mapped(path, size)
    if found is None:
        with whole(path) as part:
            _decode(data, samples, size, part)
        found = np.load(path, mmap_mode="r")
    return found


def _digest(data: Path, samples: Sequence[Sample], shape: InputShape) -> str:
    digest = sha256(f"{PREPROCESS_VERSION} {shape.rows}x{shape.columns}".encode())
    for sample in samples:
        path = image_path(data, sample)
        stat = path.stat() if path.is_file() else None
        digest.update(f"{path}|{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]


def _mapped(path: Path, size: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """None where there is no such file, or another one than was written."""
    try:
        mapped: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (OSError, EOFError, ValueError):
        return None
    return mapped if mapped.shape == size and mapped.dtype == np.uint8 else None


def _decode(data: Path, samples: Sequence[Sample], size: tuple[int, ...], path: Path) -> None:
    """Into the new file `path`, by threads: OpenCV lets go of the interpreter. Raises OSError, RecipeError."""
    images = np.lib.format.open_memmap(path, "w+", np.uint8, size)
    with path.open("r+b") as f:  # room first: a write to mapped memory that finds none ends the process
        os.posix_fallocate(f.fileno(), 0, path.stat().st_size)

    def one(k: int) -> str | None:
        try:
            images[k] = np.rint(prepare(read_grey(data, samples[k]), *size[1:]) * 255)
        except RecipeError as e:
            return str(e)
        return None

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        done = tqdm(pool.map(one, range(len(samples))), "decoding", len(samples), unit="image", delay=5, mininterval=5)
        faults = [fault for fault in done if fault]
    finally:
        pool.shutdown(cancel_futures=True)
    images.flush()
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise RecipeError(f"{len(faults)} of {len(samples)} images cannot be used: {'; '.join(faults[:3])}{more}")
