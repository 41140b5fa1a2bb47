"""A GPU's primary context and two sets of buffers, by pycuda: what a network needs around it to run in batches.

Two streams, for on one nothing overlaps: images go up on the one; the network, and the copies of its small outputs
back, run on the other. While the network works on one set of buffers, the next images are copied to pinned memory and
on to the device in the other. An event in each set says that its images are up, another that its outputs are back.
Only chunks of one batch overlap so: a batch no larger than the buffers goes up, through and back alone.

Everything here belongs to the thread that made it: pycuda frees in no other.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.base import EngineError, FloatArray
from engines.check import UnusableEngineError

Tensors = dict[str, tuple[tuple[int, ...], npt.DTypeLike]]  # name -> shape of one image's part, and its type
Enqueue = Callable[[dict[str, int], int, int], None]  # device addresses by name, number of images, stream's handle


def import_pycuda() -> Any:
    """pycuda.driver, imported no sooner than it is used: without libcuda the import fails. Raises EngineError."""
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as e:
        raise EngineError(f"pycuda cannot be used ({e}): pip install pycuda, and NVIDIA's driver") from e


@contextmanager
def cuda_errors(doing: str) -> Iterator[None]:
    """Turn pycuda's errors into EngineError, with what to do."""
    cuda = import_pycuda()
    try:
        yield
    except cuda.MemoryError as e:
        raise EngineError(
            f"{doing}: {e}: too little memory is free; stop what else uses the GPU (nvidia-smi shows it), or build "
            "the engine for smaller batches"
        ) from e
    except cuda.Error as e:
        raise EngineError(f"{doing}: {e}: see nvidia-smi and dmesg; --engine cpu does without the GPU") from e


class Gpu:
    """The primary context of one GPU, which TensorRT uses too. Current only inside `current()`."""

    def __init__(self, ordinal: int) -> None:
        self._cuda = import_pycuda()
        with cuda_errors(f"opening GPU {ordinal}"):
            self._cuda.init()
            self._context = self._cuda.Device(ordinal).retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Raises pycuda's errors."""
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def close(self, let_go: Callable[[], None]) -> None:
        """Call `let_go` with the context current, and give the context back. Raises none of pycuda's errors.

        Where it cannot be made current it is given back first: pycuda knows then that what it held went with it.
        """
        try:
            self._context.push()
        except self._cuda.Error:
            self._context.detach()
            let_go()
        else:
            let_go()
            self._context.detach()
        # "Unlike cuCtxDestroy() this method does not pop the context from stack in any circumstances" (CUDA driver
        # API, cuDevicePrimaryCtxRelease), and pycuda, having detached it, no longer pops it.
        ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


class Slot:
    """One set of buffers, on the host (pinned) and on the device, for the largest batch; and its two events."""

    def __init__(self, tensors: Tensors, largest: int) -> None:
        cuda = import_pycuda()
        # Who waits for such an event sleeps: the core belongs to the workers that decode the next images.
        flags = cuda.event_flags.DISABLE_TIMING | cuda.event_flags.BLOCKING_SYNC
        self.host: dict[str, Any] = {}
        self.device: dict[str, Any] = {}
        self.uploaded: Any = None
        self.done: Any = None
        self.rows: slice | None = None  # of the batch that is under way here
        try:
            self.uploaded, self.done = cuda.Event(flags), cuda.Event(flags)
            for name, (shape, dtype) in tensors.items():
                self.host[name] = cuda.pagelocked_empty((largest, *shape), dtype)
                self.device[name] = cuda.mem_alloc(self.host[name].nbytes)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Explicitly, since a traceback may keep this object alive for as long as it likes."""
        for device in self.device.values():
            device.free()
        for host in self.host.values():
            host.base.free()
        self.device.clear()
        self.host.clear()
        self.uploaded = self.done = None


class DoubleBuffer:
    """Runs batches of any size in chunks of at most `largest` images. The context must be current in every method.

    Methods raise pycuda's errors, but for close().
    """

    def __init__(self, *, inputs: Tensors, outputs: Tensors, largest: int) -> None:
        self._cuda = import_pycuda()
        (self._image,) = inputs
        self._outputs, self._largest = outputs, largest
        self._slots: list[Slot] = []
        self._upload: Any = None
        self._compute: Any = None
        try:
            self._upload, self._compute = self._cuda.Stream(), self._cuda.Stream()
            for _ in range(2):
                self._slots.append(Slot(inputs | outputs, largest))
        except BaseException:
            self.close()
            raise

    def run(self, batch: FloatArray, enqueue: Enqueue) -> dict[str, npt.NDArray[Any]]:
        """Every output for all of `batch`, [N, ...], in arrays of the caller's own.

        enqueue: puts the network's work on the stream it is given, and does not wait for it.
        Raises UnusableEngineError where the GPU does not answer any more.
        """
        results = {name: np.empty((len(batch), *shape), dtype) for name, (shape, dtype) in self._outputs.items()}
        try:
            for start, slot in zip(range(0, len(batch), self._largest), cycle(self._slots), strict=False):
                self._collect(slot, results)
                slot.rows = slice(start, min(start + self._largest, len(batch)))
                self._start(slot, batch[slot.rows], enqueue)
            for slot in self._slots:
                self._collect(slot, results)
        except BaseException as e:
            self._settle(e)
            raise
        return results

    def _start(self, slot: Slot, images: FloatArray, enqueue: Enqueue) -> None:
        count, pinned = len(images), slot.host[self._image][: len(images)]
        np.copyto(pinned, images)
        self._cuda.memcpy_htod_async(slot.device[self._image], pinned, self._upload)
        slot.uploaded.record(self._upload)
        self._compute.wait_for_event(slot.uploaded)
        enqueue({name: int(at) for name, at in slot.device.items()}, count, self._compute.handle)
        for name in self._outputs:
            self._cuda.memcpy_dtoh_async(slot.host[name][:count], slot.device[name], self._compute)
        slot.done.record(self._compute)

    def _collect(self, slot: Slot, results: dict[str, npt.NDArray[Any]]) -> None:
        """Wait for what is under way in `slot`, if anything is, and copy it out."""
        if slot.rows is None:
            return
        slot.done.synchronize()
        for name, result in results.items():
            result[slot.rows] = slot.host[name][: slot.rows.stop - slot.rows.start]
        slot.rows = None

    def _settle(self, error: BaseException) -> None:
        """Wait until nothing touches the buffers: the next batch uses them again."""
        for slot in self._slots:
            slot.rows = None
        try:
            self._upload.synchronize()
            self._compute.synchronize()
        except self._cuda.Error as e:
            raise UnusableEngineError(
                f"{error}; after that, the GPU did not answer any more ({e}): its context is lost to this process. "
                "Start the process again; if it happens again, see dmesg (Xid) and use --engine cpu"
            ) from error

    def close(self) -> None:
        """Free everything, also what is incomplete or in a dead context. Nothing is under way: run() saw to that."""
        for slot in self._slots:
            slot.close()
        self._slots.clear()
        self._upload = self._compute = None
