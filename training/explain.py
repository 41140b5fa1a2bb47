"""Grad-CAM of every class, as in paper 2's figure: radiograph, heat map, overlay; one picture an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxrnode.dicom.pixels import PREVIEW_LONG_SIDE, REDUCED_LEAST, load_grey
from cxrnode.dicom.read import read_instance
from cxrnode.dicom.select import select
from cxrnode.errors import Rejected
from engines.base import FloatArray
from training.checkpoint import load_run
from training.feed import to_tensor
from training.gradcam import cam_of
from training.models.network import Model
from training.recipe import Recipe, RecipeError
from training.sources import read_picture
from training.transforms import to_grey

_COLOURS = "inferno"  # as the node's capture: perceptually even, and readable for colour-blind people
_OPAQUE, _FAINT, _FULL = 0.6, 0.1, 0.6  # as the node's capture: most of the colour; where it starts, and is all there
_SIDE = 2.6  # inches of a panel
_COLUMNS = ("radiograph", "Grad-CAM", "overlay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What a model says of one radiograph, and where each class's score comes from."""

    name: str
    picture: FloatArray  # grey [H, W] in 0..1
    labels: tuple[str, ...]
    probabilities: FloatArray  # [K], softmax, not calibrated
    maps: FloatArray  # raw Grad-CAM [K, h, w], >= 0


def explain_run(
    run: Path, images: Sequence[Path], out: Path, *, member: int | None = None, device: torch.device | None = None
) -> list[Explained]:
    """Draw each of `images` into `out`, as NAME-cam.png; nothing is drawn where one cannot be read.

    member: one snapshot of an ensemble. Raises RecipeError that names the image.
    """
    recipe, model = load_run(run, member=member)
    model.to(device)
    explained = [explain(recipe, model, read_radiograph(path), path.name) for path in images]
    out.mkdir(parents=True, exist_ok=True)
    for path, one in zip(_targets(images, out), explained, strict=True):
        draw(one).savefig(path, dpi=110)
    return explained


def explain(recipe: Recipe, model: Model, picture: FloatArray, name: str) -> Explained:
    """Probabilities and the map of every class. Source of the map: see `training.gradcam`."""
    batch = to_tensor(recipe, [picture], next(model.parameters()).device)
    maps = [cam_of(model, batch.clone(), k)[0] for k in range(len(recipe.labels))]
    return Explained(
        name=name, picture=picture, labels=tuple(recipe.label_names),
        probabilities=np.asarray(model(batch).softmax(-1)[0].detach().cpu().numpy(), np.float32),
        maps=np.stack([np.asarray(m.cpu().numpy(), np.float32) for m in maps]),
    )  # fmt: skip


def read_radiograph(path: Path) -> FloatArray:
    """Grey [H, W] in 0..1 of a picture, or of a DICOM file that the node would analyse. Raises RecipeError."""
    if cv2.haveImageReader(str(path)):
        return to_grey(read_picture(path))
    try:
        ds = read_instance(path)
        if rejection := select(ds):
            raise RecipeError(f"the node would not analyse {path}: {rejection.text} ({rejection.detail})")
        return load_grey(ds, long_side=PREVIEW_LONG_SIDE, least=REDUCED_LEAST).pixels
    except Rejected as e:
        raise RecipeError(f"cannot use {path}: {e}. Give a PNG or JPEG picture, or a DICOM radiograph") from e
    except OSError as e:
        raise RecipeError(f"cannot read {path}: {e.strerror}") from e


def draw(explained: Explained) -> Figure:
    """One row a class. All rows share one scale: a weak map stays faint, and is not stretched until it alarms."""
    k, top = len(explained.labels), float(explained.maps.max())
    height, width = explained.picture.shape
    figure = Figure(figsize=(_SIDE * 3, _SIDE * height / width * k + 1.0), layout="constrained")
    figure.suptitle(f"{explained.name}\nResearch use, not for diagnosis", fontsize=10)
    rows: list[list[Axes]] = figure.subplots(k, 3, squeeze=False).tolist()
    predicted = int(explained.probabilities.argmax())
    for row, (axes, label) in enumerate(zip(rows, explained.labels, strict=True)):
        heat = _heat(explained.maps[row], explained.picture.shape, top)
        _panels(axes, explained.picture, heat)
        words = f"{label}  {explained.probabilities[row]:.3f}" + ("\npredicted" if row == predicted else "")
        axes[0].set_ylabel(words, fontsize=11, fontweight="bold" if row == predicted else "normal")
    for axis, title in zip(rows[0], _COLUMNS, strict=True):
        axis.set_title(title, fontsize=10)
    figure.supxlabel(f"raw scale 0 to {top:.3g}, the greatest of all classes; softmax, not calibrated", fontsize=8)
    return figure


def _panels(axes: Sequence[Axes], picture: FloatArray, heat: FloatArray) -> None:
    for axis in (axes[0], axes[2]):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes[1].imshow(heat, cmap=_COLOURS, vmin=0, vmax=1)
    level = np.clip((heat - _FAINT) / (_FULL - _FAINT), 0, 1)
    axes[2].imshow(heat, cmap=_COLOURS, vmin=0, vmax=1, alpha=_OPAQUE * level * level * (3 - 2 * level))
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])


def _heat(cam: FloatArray, shape: tuple[int, ...], top: float) -> FloatArray:
    """The map over the radiograph, [H, W] in 0..1."""
    scaled = cv2.resize(cam / np.float32(top or 1), shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(scaled, 0, 1), np.float32)


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """A file a picture; numbered where two of them have one name."""
    names = [path.stem for path in images]
    if len(set(names)) < len(names):
        names = [f"{i}-{name}" for i, name in enumerate(names, start=1)]
    return [out / f"{name}-cam.png" for name in names]
