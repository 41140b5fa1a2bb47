"""A recipe: everything that a fit depends on, in one TOML file. An unknown key is an error."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from engines.bundle import Code, InputShape

RECIPES = Path(__file__).parent / "recipes"
_WORDS = {
    "missing": "is missing",
    "tuple_type": "should be an array",
    "dict_type": "should be a table",
    "model_type": "should be a table",
}


class RecipeError(Exception):
    """A recipe, a run or the data cannot be used; says what to do, each fault on a line of its own."""

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelSpec(_Frozen):
    name: str
    code: Code
    normal: bool = False


class DataSpec(_Frozen):
    """Which images a fit may see. Splits are by group: some tenths of the groups test and validate, the rest trains."""

    external: tuple[str, ...] = ()  # whole sources that no fit sees
    children: tuple[str, ...] = ("kaggle_kermany",)  # sources of children: adults are evaluated apart
    merge: dict[str, tuple[str, ...]] = {}  # a label, and the data's labels that count as it
    most: dict[str, PositiveInt] = {}  # a label, and how many of its images are used: whole groups, by split_seed
    sources: dict[str, tuple[str, ...]] = {}  # a label, and the only sources that its images are taken from
    split_seed: int = 7
    test_tenths: int = Field(default=1, ge=1, le=5)
    folds: int = Field(default=0, ge=0)  # 0: the tenth beside the test part validates; k: k-fold over all but the test
    fold: int | None = Field(default=None, ge=0)  # which of the folds validates this fit
    sampling: Literal["balanced", "shuffle"] = "balanced"  # shuffle: each image once an epoch, as the papers do
    balance: float = Field(default=0.5, ge=0, le=1)  # 0: sources as they come; 1: they weigh the same in a label

    @model_validator(mode="after")
    def _fold_is_one_of_the_folds(self) -> Self:
        if self.folds == 1 or (self.fold is not None and self.fold >= self.folds):
            raise ValueError(f"fold {self.fold} of {self.folds} folds: give folds >= 2 and 0 <= fold < folds")
        return self


class ModelSpec(_Frozen):
    trunk: str  # timm:NAME or torchvision:NAME
    # imagenet (download) | package:NAME | none | path of a state dict | run:FOLDER[,FOLDER], the mean of whole networks
    weights: str
    pooling: Literal["mean", "lstm"] = "mean"  # paper 1: average pooling; paper 2: an LSTM over the map's places
    units: int = Field(default=512, ge=1)  # of the LSTM
    hidden: int = Field(default=128, ge=1)  # the ReLU layer
    dropout: float = Field(default=0.5, ge=0, lt=1)
    frozen: bool = False  # fit the head alone, on the trunk's features of every image, computed once
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
    optimiser: Literal["adamw", "adam", "rmsprop"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["one_cycle", "snapshot", "constant"] = "one_cycle"
    cycles: int = Field(default=1, ge=1)  # of the snapshot schedule: each ends in a member of the ensemble
    weight_decay: float = 0.02  # of all matrices, decoupled from the gradient (adamw only)
    l2: float = 0.0  # times the sum of squares of the head's two layers, in the loss
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the beta distribution; 0: none
    ema: float = 0.998  # decay of the averaged weights, which are what is evaluated and shipped; 0: the last weights
    seed: int = 0

    @model_validator(mode="after")
    def _cycles_fill_the_epochs(self) -> Self:
        if self.cycles > 1 and (self.schedule != "snapshot" or self.epochs % self.cycles):
            raise ValueError(f"{self.cycles} cycles need schedule = 'snapshot' and a multiple of as many epochs")
        return self


class Recipe(_Frozen):
    name: str
    description: str
    labels: tuple[LabelSpec, ...] = Field(min_length=2)
    auxiliary: tuple[str, ...] = ()  # findings that the fit also learns to tell apart, and the network never says
    input: InputShape
    data: DataSpec = DataSpec()
    model: ModelSpec
    augment: AugmentSpec = AugmentSpec()
    fit: FitSpec

    @property
    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]

    @property
    def fitted_names(self) -> list[str]:
        return [*self.label_names, *self.auxiliary]


def load_recipe(name_or_path: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe of training/recipes by name, or any TOML file by path, with `changes` such as "fit.epochs=3".

    Raises RecipeError that has a line for every fault.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe '{name_or_path}': give a TOML file, or one of: {known}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        for change in changes:
            _change(values, change)
        return Recipe.model_validate(values)
    except tomllib.TOMLDecodeError as e:
        raise RecipeError(f"recipe {path} is not valid: {e}") from e
    except ValidationError as e:
        raise RecipeError(f"recipe {path} is not valid:", *faults(e.errors(), Recipe)) from e


def _change(values: dict[str, Any], change: str) -> None:
    """`table.key=value`; the value as in TOML, or a bare word for a string."""
    key, equals, value = change.partition("=")
    *tables, last = key.strip().split(".")
    if not equals or not last:
        raise RecipeError(f"cannot read '{change}': write it as fit.epochs=3")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise RecipeError(f"'{change}': {table} is no table of the recipe")
    try:
        values[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        values[last] = value.strip()


def faults(errors: Sequence[ErrorDetails], table: type[BaseModel]) -> list[str]:
    """One line each, but for those of a table or array that are only of what stands in it; `table` is what was read."""
    inner = {e["loc"][:k] for e in errors for k in range(len(e["loc"]))}
    return [_fault(e, table) for e in errors if e["loc"] not in inner]


def _fault(error: ErrorDetails, table: type[BaseModel]) -> str:
    """One line: the key as TOML has it, its value unless that is a table or an array, what is wrong with it."""
    loc, value = error["loc"], error["input"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
    shown = f" = {json.dumps(value, ensure_ascii=False)}" if isinstance(value, str | int | float) else ""
    return f"{key}{shown}: {_what(error, table)}"


def _what(error: ErrorDetails, table: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1], table)
        close = get_close_matches(str(error["loc"][-1]), known, n=1)
        return "unknown key; " + (f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}")
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return _WORDS.get(error["type"]) or re.sub("^(Input|Tuple) should", "should", error["msg"])


def _known_keys(loc: Sequence[int | str], table: type[BaseModel]) -> list[str]:
    """The keys of the table at `loc` in `table`."""
    for key in (part for part in loc if isinstance(part, str)):
        kind = table.model_fields[key].annotation
        table = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel))
    return list(table.model_fields)
