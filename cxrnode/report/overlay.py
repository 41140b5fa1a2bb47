"""The picture of the Grad-CAM capture: heat map on the radiograph, with words above and the map's scale below.

No patient text is drawn. The words stand outside the radiograph, so that no anatomy is covered.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cxrnode.report.context import (
    DEFAULT_LONG_SIDE,
    ReportContext,
    finding_of,
    finding_word,
    map_reference,
    state_of,
)
from cxrnode.report.source import ascii_text
from cxrnode.types import ByteArray, FloatArray, Prediction

COLOUR_MAP = cv2.COLORMAP_INFERNO  # perceptually even, and readable for colour-blind people
WARNING = "NOT FOR DIAGNOSTIC USE - research use only"
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _GREY, _AMBER, _BAND = (245, 245, 245), (175, 175, 175), (255, 196, 64), 18
_MIN_WIDTH = 640  # of the picture at long side 1024: the words need it
_TOP, _BOTTOM = 118, 92  # heights of the bands, at long side 1024
_OPAQUE = 0.6  # the radiograph always shines through
_FAINT = 0.1  # of the scale: below it nothing is drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    finding: str
    labels: str
    model: str
    scale: str
    map_of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where things are, in pixels of the picture. The radiograph keeps its aspect ratio."""

    width: int
    height: int
    top: int
    left: int
    image_width: int
    image_height: int
    unit: float  # 1.0 at long side 1024

    @staticmethod
    def of(rows: int, columns: int, long_side: int = DEFAULT_LONG_SIDE) -> Layout:
        unit = long_side / 1024
        top, bottom = round(_TOP * unit), round(_BOTTOM * unit)
        scale = min(long_side / columns, (long_side - top - bottom) / rows)
        width, height = max(1, round(columns * scale)), max(1, round(rows * scale))
        canvas = max(width, round(_MIN_WIDTH * unit))
        return Layout(
            width=canvas, height=top + height + bottom, top=top, left=(canvas - width) // 2,
            image_width=width, image_height=height, unit=unit,
        )  # fmt: skip


def draw_overlay(
    preview: ByteArray,
    cam: FloatArray,
    prediction: Prediction,
    context: ReportContext,
    *,
    long_side: int = DEFAULT_LONG_SIDE,
) -> ByteArray:
    """The capture's picture, RGB uint8 [H, W, 3] with max(H, W) <= `long_side`.

    preview: uint8 [h, w], 0 = black. cam: raw Grad-CAM, float32 [ch, cw], >= 0, over the whole of the preview.
    Colours run from 0 to max(the bundle's reference, this map's maximum): a weak map stays faint instead of being
    stretched until it alarms.
    """
    layout = Layout.of(preview.shape[0], preview.shape[1], long_side)
    strength = float(cam.max(initial=0.0))
    top_of_scale = max(map_reference(context.bundle) or 0.0, strength)
    canvas = np.zeros((layout.height, layout.width, 3), np.uint8)
    canvas[: layout.top] = canvas[layout.top + layout.image_height :] = _BAND
    grey = cv2.resize(preview, (layout.image_width, layout.image_height), interpolation=_interpolation(preview, layout))
    picture = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    if strength > 0:
        picture = _blend(picture, _heat(cam, layout, top_of_scale))
    right = layout.left + layout.image_width
    canvas[layout.top : layout.top + layout.image_height, layout.left : right] = picture
    words = _words(prediction, context, strength, top_of_scale)
    _draw_top(canvas, layout, words)
    _draw_bottom(canvas, layout, words, top_of_scale if strength > 0 else None)
    return canvas


def _interpolation(preview: ByteArray, layout: Layout) -> int:
    """Area averaging is slow and only better where several pixels become one."""
    return cv2.INTER_AREA if preview.shape[0] >= 2 * layout.image_height else cv2.INTER_LINEAR


def _heat(cam: FloatArray, layout: Layout, top_of_scale: float) -> ByteArray:
    """The map over the radiograph, uint8 [H, W]: 255 is the top of the scale.

    Cubic to 64 times 64 for a smooth shape, linear from there: a twentieth of the time of cubic all the way.
    """
    scaled = cv2.resize(cam / np.float32(top_of_scale), (64, 64), interpolation=cv2.INTER_CUBIC)
    levels = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    size = (layout.image_width, layout.image_height)
    return np.asarray(cv2.resize(levels, size), np.uint8)


def _blend(picture: ByteArray, heat: ByteArray) -> ByteArray:
    """Colour over grey, the more opaque the stronger the map. Fixed point: 8 fractional bits."""
    colour = _coloured(heat)
    alpha = cv2.LUT(heat, _ALPHA)
    alpha3 = cv2.merge([alpha, alpha, alpha])
    over = cv2.multiply(colour, alpha3, scale=1 / 255)
    under = cv2.multiply(picture, cv2.bitwise_not(alpha3), scale=1 / 255)
    return np.asarray(cv2.add(over, under), np.uint8)


def _coloured(heat: ByteArray) -> ByteArray:
    return np.asarray(cv2.applyColorMap(heat, _RGB_MAP), np.uint8)


def _alpha_table() -> ByteArray:
    level = np.clip((np.arange(256) / 255 - _FAINT) / (0.6 - _FAINT), 0, 1)
    return (255 * _OPAQUE * level * level * (3 - 2 * level)).astype(np.uint8)  # smoothstep: no visible edge


def _rgb_map() -> ByteArray:
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(ramp, COLOUR_MAP)[..., ::-1])


_ALPHA = _alpha_table()
_RGB_MAP = _rgb_map()


def _words(prediction: Prediction, context: ReportContext, strength: float, top_of_scale: float) -> _Words:
    bundle = context.bundle
    label = finding_of(bundle, prediction)
    by_name = dict(zip((x.name for x in bundle.labels), prediction.probabilities, strict=True))
    finding = finding_word(bundle, prediction).upper()
    if label is not None:
        finding += f"   probability {by_name[label.name]:.3f}   (present at {label.present_at:g})"
    states = [f"{x.name} {by_name[x.name]:.3f} {state_of(x, by_name[x.name]).word}" for x in bundle.labels]
    mapped = bundle.labels[prediction.class_index].name
    return _Words(
        finding=finding,
        labels="   |   ".join(states),
        model=f"Model {ascii_text(context.model)}   bundle {bundle.digest[:12]}   cxrnode {context.software_version}",
        scale=f"raw scale 0 to {top_of_scale:.3g}, this image's maximum {strength:.3g}" if strength > 0 else "",
        map_of=f"Grad-CAM of '{mapped}': {_what_shows(strength / top_of_scale if strength > 0 else 0.0)}",
    )


def _what_shows(share: float) -> str:
    """share: of the scale, that the map's maximum has."""
    if share == 0:
        return "NO MAP (it is zero everywhere)"
    return "brighter raised its score more" if share >= _FAINT else "TOO WEAK TO SHOW (no place raised its score much)"


def _draw_top(canvas: ByteArray, layout: Layout, words: _Words) -> None:
    _write(canvas, WARNING, 0.62, 30, layout, _AMBER)
    _write(canvas, words.finding, 0.95, 70, layout, _WHITE, thickness=2)
    _write(canvas, words.labels, 0.55, 102, layout, _GREY)


def _draw_bottom(canvas: ByteArray, layout: Layout, words: _Words, top_of_scale: float | None) -> None:
    base = (layout.top + layout.image_height) / layout.unit
    if top_of_scale is None:
        _write(canvas, words.map_of, 0.55, base + 34, layout, _WHITE)
    else:
        x = _draw_bar(canvas, layout, base + 16, top_of_scale)
        _write(canvas, words.map_of, 0.5, base + 28, layout, _WHITE, x=x)
        _write(canvas, words.scale, 0.5, base + 50, layout, _WHITE, x=x)
    _write(canvas, words.model, 0.5, base + 80, layout, _GREY)


def _draw_bar(canvas: ByteArray, layout: Layout, y: float, top_of_scale: float) -> float:
    """The scale bar as the map looks on mid-grey; returns where the words beside it may start."""
    u = layout.unit
    x0, y0, width, height = round(16 * u), round(y * u), round(200 * u), round(18 * u)
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    grey = np.full((height, width, 3), 96, np.uint8)
    canvas[y0 : y0 + height, x0 : x0 + width] = _blend(grey, ramp)
    cv2.rectangle(canvas, (x0, y0), (x0 + width - 1, y0 + height - 1), _GREY, 1)
    _write(canvas, "0", 0.42, y + 34, layout, _GREY)
    end = f"{top_of_scale:.3g}"
    size = cv2.getTextSize(end, _FONT, 0.42 * u, 1)[0][0]
    _write(canvas, end, 0.42, y + 34, layout, _GREY, x=216 - size / u)
    return 236


def _write(
    canvas: ByteArray, text: str, scale: float, y: float, layout: Layout, colour: tuple[int, int, int],
    *, x: float = 16, thickness: int = 1,
) -> None:  # fmt: skip
    """One line at `x`, baseline `y` (both at long side 1024), made smaller where it would not fit."""
    scale *= layout.unit
    room = layout.width - round((x + 16) * layout.unit)
    width = cv2.getTextSize(text, _FONT, scale, thickness)[0][0]
    if width > room:
        scale *= room / width
    at = (round(x * layout.unit), round(y * layout.unit))
    cv2.putText(canvas, text, at, _FONT, scale, colour, thickness, cv2.LINE_AA)
