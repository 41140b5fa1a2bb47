"""A recipe: everything that a fit depends on, in one TOML file. An unknown key is an error."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.bundle import Code, InputShape

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(Exception):
    """A recipe, a run or the data cannot be used; says what to do."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelSpec(_Frozen):
    name: str
    code: Code
    normal: bool = False


class DataSpec(_Frozen):
    """Which images a fit may see. Splits are by group: 80 % train, 10 % validation, 10 % test."""

    external: tuple[str, ...] = ()  # whole sources that no fit sees
    children: tuple[str, ...] = ("kaggle_kermany",)  # sources of children: adults are evaluated apart
    split_seed: int = 7
    balance: float = Field(default=0.5, ge=0, le=1)  # 0: as they come; 1: every source of a label weighs the same


class ModelSpec(_Frozen):
    trunk: str  # timm:NAME or torchvision:NAME
    weights: (
        str  # imagenet (download) | package:NAME | none | path of a state dict | run:FOLDER[,FOLDER], whole networks
    )
    hidden: int = Field(default=128, ge=1)  # paper 1's ReLU layer
    dropout: float = Field(default=0.5, ge=0, lt=1)
    mirror: bool = False  # predict on the mirror image too, and average


class AugmentSpec(_Frozen):
    """Paper 1: rotation 10 degrees, zoom 0.9-1.1, shifts of 10 %; `appearance`: how often what sites differ in."""

    rotation_deg: float = 10.0
    zoom: float = 0.1
    shift: float = 0.1
    flip: bool = False
    appearance: float = Field(default=1.0, ge=0, le=1)  # 0: never


class FitSpec(_Frozen):
    epochs: int = Field(ge=0)  # 0: the weights as they are, for instance the mean of two runs
    batch_size: int = Field(default=32, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = 0.02
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the beta distribution; 0: none
    ema: float = 0.998  # decay of the averaged weights, which are what is evaluated and shipped
    seed: int = 0


class Recipe(_Frozen):
    name: str
    description: str
    labels: tuple[LabelSpec, ...] = Field(min_length=2)
    input: InputShape
    data: DataSpec = DataSpec()
    model: ModelSpec
    augment: AugmentSpec = AugmentSpec()
    fit: FitSpec

    @property
    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe of training/recipes by name, or any TOML file by path. Raises RecipeError that names the key."""
    path = Path(name_or_path)
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe '{name_or_path}': give a TOML file, or one of: {known}")
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as e:
        raise RecipeError(f"recipe {path} is not valid: {e}") from e
