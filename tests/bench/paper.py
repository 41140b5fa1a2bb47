"""Speed on paper: `python -m tests.bench.paper` (make bench-paper) prints the tables of README.md, without a GPU.

The least time that a network can take on a GPU, whatever runs it: its operations over the GPU's peak, the bytes that
must move over its bandwidth, its kernels times what starting one takes. Floors, not forecasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from engines.bundle import InputShape, load_bundle
from training.models.network import Ensemble, Exported, make_network
from training.recipe import Recipe, load_recipe

SYSTEMS = ("resnet50-snapshot", "vgg19-rnn", "densenet121-rnn", "inceptionv3-rnn", "inceptionresnetv2-rnn")
BUNDLES = {"cxr3-lite2": "cxr3-lite2", "resnet50-cxr3": "resnet50-pre"}  # and the recipe that has its network
PRECISIONS = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes of a number in the trunk; the head is float32 in all of them
LAUNCH_S = 4e-6  # for the CPU to submit one kernel: 4 to 6 us: susun-blog.com/blog/pegainfer-3-cuda-graph
CPU_S = 0.0589 + 0.0560  # decode and report of an image, on one core (README.md, make bench-batch)
LINKS = {"PCIe 4 x16": 16e9 * 16, "PCIe 4 x8": 16e9 * 8, "PCIe 5 x16": 32e9 * 16}  # bits a second in one direction
_ENCODING = 128 / 130  # bits of data in those of the line, PCIe 3 and later
# What reads and writes memory even when everything between is done on the way; `add` is where two maps meet.
_HEAVY = {"convolution", "addmm", "mm", "bmm", "max_pool2d_with_indices", "avg_pool2d", "mean", "sum"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Dense peaks, operations a second (TF32, which the engine leaves off, for comparison), and bytes a second.

    Source: NVIDIA's data sheets of each; where they state tensor cores with sparsity (L4, H100), half of that.
    """

    name: str
    fp32: float
    tf32: float
    fp16: float
    int8: float
    bandwidth: float
    link: str = "PCIe 4 x16"


GPUS = (
    Gpu(name="A10", fp32=31.2e12, tf32=62.5e12, fp16=125e12, int8=250e12, bandwidth=600e9),
    Gpu(name="L4", fp32=30.3e12, tf32=60e12, fp16=121e12, int8=242.5e12, bandwidth=300e9),
    Gpu(name="A100 40GB SXM", fp32=19.5e12, tf32=156e12, fp16=312e12, int8=624e12, bandwidth=1555e9),
    Gpu(name="A100 80GB SXM", fp32=19.5e12, tf32=156e12, fp16=312e12, int8=624e12, bandwidth=2039e9),
    Gpu(name="H100 SXM", fp32=67e12, tf32=494.5e12, fp16=989.5e12, int8=1979e12, bandwidth=3350e9, link="PCIe 5 x16"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Trunk or head: operations an image (a multiply-add is two), numbers of weights, numbers that move an image."""

    operations: int = 0
    weights: int = 0
    moved: int = 0  # everything elementwise done on the way, joining maps free
    moved_apart: int = 0  # every operation by itself
    kernels: int = 0  # of the former


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    name: str
    input: InputShape
    trunk: Part
    head: Part
    outputs: int  # bytes an image

    @property
    def kernels(self) -> int:
        return self.trunk.kernels + self.head.kernels

    def weights(self, precision: str) -> int:
        """Bytes."""
        return self.trunk.weights * PRECISIONS[precision] + self.head.weights * 4

    def moved(self, precision: str) -> int:
        """Bytes an image."""
        return self.trunk.moved * PRECISIONS[precision] + self.head.moved * 4

    @property
    def copied(self) -> int:
        """Bytes an image to the device: float32, the grey image once a channel."""
        return self.input.channels * self.input.rows * self.input.columns * 4

    def copying_s(self, link: str) -> float:
        """Seconds an image, up; what comes back goes the other way at the same time."""
        return self.copied * 8 / (LINKS[link] * _ENCODING)


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the numbers that a network's operations read and write, its weights apart, in its trunks and elsewhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts = {True: Part(), False: Part()}
        self._in_trunk = False
        self._weights = {_storage(t) for t in (*model.parameters(), *model.buffers())}
        for name, module in model.named_modules():
            if name.endswith("trunk"):
                module.register_forward_pre_hook(lambda *_: self._enter(True))
                module.register_forward_hook(lambda *_: self._enter(False))

    def _enter(self, trunk: bool) -> None:
        self._in_trunk = trunk

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._count(func.overloadpacket.__name__.rstrip("_"), args, out)
        return out

    def _count(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        read = [t.numel() for t in _tensors(args) if _storage(t) not in self._weights]
        written = sum(t.numel() for t in _tensors((out,)))
        part = self.parts[self._in_trunk]
        heavy = name in _HEAVY
        joined = min(read) if name == "add" and len(read) == 2 else 0  # the other map of the two
        self.parts[self._in_trunk] = replace(
            part, moved=part.moved + (sum(read) + written if heavy else joined),
            moved_apart=part.moved_apart + sum(read) + written, kernels=part.kernels + heavy,
        )  # fmt: skip


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            yield value


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@torch.no_grad()
def cost_of(name: str, recipe: Recipe) -> Cost:
    """Of one image through what a bundle of that recipe runs, Grad-CAM and calibration included."""
    networks = [make_network(recipe, weights=False) for _ in range(recipe.fit.cycles)]
    model = Exported(Ensemble(networks) if len(networks) > 1 else networks[0]).eval()
    shape = recipe.input
    image = torch.zeros(1, shape.channels, shape.rows, shape.columns)
    with FlopCounterMode(display=False) as flops:
        outputs = model(image)
    with Traffic(model) as traffic:
        model(image)
    in_trunks = sum(sum(c.values()) for n, c in flops.get_flop_counts().items() if n.endswith(".trunk"))
    weights = sum(p.numel() for p in model.parameters())
    trunk_weights = sum(p.numel() for network in networks for p in network.trunk.parameters())
    trunk = replace(traffic.parts[True], operations=in_trunks, weights=trunk_weights)
    rest = flops.get_total_flops() - in_trunks
    head = replace(traffic.parts[False], operations=rest, weights=weights - trunk_weights)
    return Cost(name=name, input=shape, trunk=trunk, head=head, outputs=sum(t.nbytes for t in outputs))


def cost_of_bundle(name: str) -> Cost:
    """By the network of its recipe, having made sure that the bundle's graph holds as many weights."""
    cost = cost_of(f"{name} (bundle)", load_recipe(BUNDLES[name]))
    held = sum(math.prod(x.dims) for x in onnx.load(load_bundle(name).model_path).graph.initializer)
    wanted = cost.trunk.weights + cost.head.weights
    if not 0.98 < held / wanted < 1.02:  # batch norms are folded, or keep their statistics
        raise SystemExit(
            f"bundle {name} holds {held:,} numbers, recipe {BUNDLES[name]} has {wanted:,}: name its recipe"
        )
    return cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    image_s: float  # what each further image adds
    batch_s: float  # what a batch costs whatever its size: its weights read once, its kernels started
    by: str  # what sets image_s

    @property
    def enough(self) -> int:
        """The batch from which on the images cost more than the batch."""
        return math.ceil(self.batch_s / self.image_s)


def floor_of(cost: Cost, gpu: Gpu, precision: str) -> Floor:
    compute = cost.trunk.operations / getattr(gpu, precision) + cost.head.operations / gpu.fp32
    memory = cost.moved(precision) / gpu.bandwidth
    return Floor(
        image_s=max(compute, memory), by="operations" if compute > memory else "memory",
        batch_s=cost.weights(precision) / gpu.bandwidth + cost.kernels * LAUNCH_S,
    )  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------------------------


def table(*head: str) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def networks_table(costs: Sequence[Cost]) -> None:
    table(
        "network", "input", "GFLOP trunk", "GFLOP head", "kernels", "weights MB fp32 / fp16 / int8",
        "MB moved an image fp32 / fp16 / int8", "fp32, every operation apart",
    )  # fmt: skip
    for c in costs:
        weights, moved = (" / ".join(f"{of(p) / 1e6:.1f}" for p in PRECISIONS) for of in (c.weights, c.moved))
        apart = (c.trunk.moved_apart + c.head.moved_apart) * 4 / 1e6
        size = f"{c.input.channels}x{c.input.rows}x{c.input.columns}"
        operations = (f"{p.operations / 1e9:.{digits}f}" for p, digits in ((c.trunk, 2), (c.head, 3)))
        row(c.name, size, *operations, c.kernels, weights, moved, f"{apart:.1f}")


def gpus_table() -> None:
    table("GPU", "fp32 T/s", "TF32", "fp16", "int8", "GB/s")
    for g in GPUS:
        row(g.name, *(f"{x / 1e12:g}" for x in (g.fp32, g.tf32, g.fp16, g.int8)), f"{g.bandwidth / 1e9:g}")


def floors_table(costs: Sequence[Cost]) -> None:
    table("network", *(g.name for g in GPUS))
    for c in costs:
        for p in PRECISIONS:
            row(f"{c.name} {p}", *(_said(floor_of(c, g, p)) for g in GPUS))


def _said(floor: Floor) -> str:
    return f"{floor.image_s * 1e6:.1f} {'o' if floor.by == 'operations' else 'm'}, {floor.enough}"


def copies_table(costs: Sequence[Cost]) -> None:
    table("input", "KB up", "bytes back at most", *(f"us by {name}" for name in LINKS))
    for c in {(c.input.channels, c.input.rows): c for c in sorted(costs, key=lambda c: c.outputs)}.values():
        took = (f"{c.copying_s(link) * 1e6:.1f}" for link in LINKS)
        row(f"{c.input.channels}x{c.input.rows}x{c.input.columns}", f"{c.copied / 1e3:.0f}", c.outputs, *took)


def cores_table(costs: Sequence[Cost]) -> None:
    """How many cores decode and report as fast as the GPU answers, or its link brings images, at the very best."""
    table("network, fp32 / fp16", *(g.name for g in GPUS))
    for c in costs:
        row(c.name, *(" / ".join(f"{_cores(c, g, p):,}" for p in ("fp32", "fp16")) for g in GPUS))


def _cores(cost: Cost, gpu: Gpu, precision: str) -> int:
    return math.floor(CPU_S / max(floor_of(cost, gpu, precision).image_s, cost.copying_s(gpu.link)))


@contextmanager
def _no_threads() -> Iterator[None]:
    """Nothing here is timed, and others may want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def main() -> None:
    with _no_threads():
        recipes = [load_recipe(name) for name in SYSTEMS]
        costs = [cost_of(r.name, r) for r in recipes] + [cost_of_bundle(b) for b in BUNDLES]
    networks_table(costs)
    gpus_table()
    floors_table(costs)
    copies_table(costs)
    cores_table(costs)


if __name__ == "__main__":
    main()
