"""Model bundles: a folder with model.onnx, bundle.json, golden.npz and MODEL_CARD.md (see `Bundle`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.base import EngineError, EngineOutput, FloatArray
from engines.onnx_files import check_one_file
from engines.preprocess import PREPROCESS_VERSION, prepare

SHIPPED = Path(__file__).parent / "bundles"
DEFAULT_BUNDLE = "cxr3-lite2"
MODEL, MANIFEST, GOLDEN, CARD = "model.onnx", "bundle.json", "golden.npz", "MODEL_CARD.md"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(_Frozen):
    """A coded concept (PS3.3 section 8.8). A site may change it in its bundle.json."""

    value: str = Field(min_length=1, max_length=64)
    scheme: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class Label(_Frozen):
    """One output of the network: present at or above `present_at`, absent below `absent_below`, else undetermined."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    code: Code
    normal: bool = False  # true for the label that means "none of the others"
    present_at: float = Field(ge=0, le=1)
    absent_below: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Label:
        if self.absent_below > self.present_at:
            raise ValueError(f"label {self.name}: absent_below must not exceed present_at")
        return self


class InputShape(_Frozen):
    channels: int = Field(ge=1)
    rows: int = Field(ge=16)
    columns: int = Field(ge=16)
    equalise: bool = False  # see engines.preprocess.prepare

    def prepared(self, grey: FloatArray) -> FloatArray:
        """A radiograph, float32 [H, W] in 0..1, as this input takes it, [rows, columns]: see preprocess.prepare."""
        return prepare(grey, self.rows, self.columns, equalise=self.equalise)


class Tolerance(_Frozen):
    """Largest absolute difference from the golden outputs; the map's is relative to its largest value."""

    probabilities: float = Field(gt=0)
    cam: float = Field(gt=0)
    tie: float = Field(ge=0)  # the class may differ where the two best probabilities are closer than this


class Accepted(_Frozen):
    """A precision's trial that was accepted: what it cost on the validation part, as (fp32's, this precision's)."""

    accuracy: tuple[float, float]
    auc: tuple[float, float]  # mean of the labels' own
    images: int = Field(ge=1)
    engine: str  # that was tried: kind, library and version, precision
    largest: dict[str, float] = {}  # int8: of each value that is quantised, the magnitude that becomes 127


class Manifest(_Frozen):
    """bundle.json."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str
    description: str
    architecture: str
    input: InputShape
    preprocess_version: int
    labels: tuple[Label, ...] = Field(min_length=2)
    calibration: dict[str, Any]  # how the probabilities were calibrated (already inside the graph)
    tolerance: dict[str, Tolerance]  # per precision: "fp32", ...
    accepted: dict[str, Accepted] = {}  # per precision that only a trial allows: "bf16", "int8"
    files: dict[str, str]  # name -> sha256
    data: dict[str, Any]  # training data, split, licences
    metrics: dict[str, Any]  # with 95 % intervals
    intended_use: str
    license: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Inputs and the fp32 reference outputs that torch computed for them."""

    batch: FloatArray  # [N, C, H, W]
    output: EngineOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified model bundle on disk. `digest` identifies it: sha256 of bundle.json, which lists every file's.

    Nothing else in its folder is read; what a link leads to is what is hashed and read.
    """

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def labels(self) -> tuple[Label, ...]:
        return self.manifest.labels

    @property
    def model_path(self) -> Path:
        return self.folder / MODEL

    def golden(self) -> Golden:
        with np.load(self.folder / GOLDEN, allow_pickle=False) as z:
            output = EngineOutput(probabilities=z["probabilities"], class_index=z["class_index"], cam=z["cam"])
            return Golden(batch=z["batch"], output=output)


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def find_bundle(name_or_path: str) -> Path:
    """A shipped bundle's folder by its name ("default" too), or the folder that a path names. Raises EngineError."""
    name = DEFAULT_BUNDLE if name_or_path == "default" else name_or_path
    try:
        given = Path(name).expanduser()
    except RuntimeError as e:  # ~ of a user without a home
        raise EngineError(f"no model bundle '{name_or_path}' ({e}): give its folder's whole path") from e
    for folder in (SHIPPED / name, given):
        if (folder / MANIFEST).is_file():
            return folder
    shipped = ", ".join(p.name for p in shipped_bundles()) or "none"
    raise EngineError(f"no model bundle '{name_or_path}': give a folder that holds {MANIFEST}, or one of: {shipped}")


def shipped_bundles() -> list[Path]:
    return sorted(p.parent for p in SHIPPED.glob(f"*/{MANIFEST}"))


def load_bundle(name_or_path: str) -> Bundle:
    """Read a bundle and verify every file's sha256, and that its model wants no other file.

    Raises EngineError that names the file at fault.
    """
    folder = find_bundle(name_or_path)
    raw = (folder / MANIFEST).read_bytes()
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as e:
        raise EngineError(f"{folder / MANIFEST} is not a valid bundle manifest: {e}") from e
    if manifest.preprocess_version != PREPROCESS_VERSION:
        raise EngineError(
            f"bundle {manifest.name} wants preprocessing version {manifest.preprocess_version}, this cxrnode has "
            f"{PREPROCESS_VERSION}: export the bundle again, or install the cxrnode it was made for"
        )
    missing = {MODEL, GOLDEN, CARD} - manifest.files.keys()
    if missing:
        raise EngineError(f"{folder / MANIFEST} lists no sha256 for {', '.join(sorted(missing))}: export it again")
    for name, digest in manifest.files.items():
        _verify_file(folder, name, digest)
    check_one_file(folder / MODEL)
    return Bundle(folder=folder, manifest=manifest, digest=hashlib.sha256(raw).hexdigest())


def _verify_file(folder: Path, name: str, digest: str) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise EngineError(f"bundle file {path} is missing: copy the whole bundle folder again")
    if sha256_file(path) != digest:
        raise EngineError(
            f"bundle file {path} does not match its sha256 in {MANIFEST}: it was changed or damaged; "
            "copy the bundle again from where it came"
        )
