"""Where a fit runs: the CPU, one GPU, or one process a GPU under torchrun (which sets RANK, WORLD_SIZE, LOCAL_RANK)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

from training.recipe import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """`rank` of `world` processes, each of which takes every world-th image of a batch."""

    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run folder, and speaks."""
        return self.rank == 0

    def shared(self, module: nn.Module) -> nn.Module:
        """Where several processes fit the module, their gradients are averaged."""
        return nn.parallel.DistributedDataParallel(module) if self.world > 1 else module

    def mixed_precision(self) -> AbstractContextManager[object]:
        """bfloat16 where a GPU has it: it needs no loss scaling. On a CPU it is slower than float32."""
        gpu = self.torch_device.type == "cuda"
        if gpu and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def wait_for_others(self) -> None:
        if self.world > 1:
            dist.barrier()


@contextmanager
def open_device(name: str) -> Iterator[Device]:
    """The device `cpu` or `cuda`, in torchrun's group if it started us. Raises RecipeError where there is no such."""
    if name not in ("cpu", "cuda"):
        raise RecipeError(f"no device '{name}': give cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("torch sees no CUDA device: give --device cpu, or see `nvidia-smi` and torch's CUDA build")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    index = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", index) if name == "cuda" else torch.device("cpu")
    if world == 1:
        yield Device(torch_device=where)
        return
    dist.init_process_group("nccl" if name == "cuda" else "gloo")
    try:
        yield Device(torch_device=where, rank=rank, world=world)
    finally:
        dist.destroy_process_group()
