"""What a network that learned nothing would give: a baseline for the accuracy, and a sanity check for Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm

from engines.base import FloatArray
from training.cache import decoded
from training.datasets import Part, Sample, load_index, select, used
from training.feed import Images, to_tensor
from training.frozen import prepare_trunk
from training.gradcam import cam_of
from training.metrics import Row, Scored, report, share
from training.models.network import Ensemble, Model, Network, make_network
from training.recipe import Recipe
from training.transforms import to_grey

_BATCH = 32
_MAPS = 30  # test images whose maps are compared
_SHRINK = 0.01  # of the linear classifier (1 / lambda): there are more features than a label has images


def random_baseline(recipe: Recipe, data: Path, cache: Path) -> Row:
    """`report` of a linear classifier on the pooled features of the recipe's trunk with random weights, test part.

    What it reaches needs no sight of disease: brightness and coarse texture, which tell ages and sources apart, do.
    `cache` is the folder of decoded images.
    """
    samples = load_index(data, recipe.data)
    learnt, test = used(samples, Part.TRAIN, recipe), select(samples, Part.TEST, recipe.label_names)
    images = decoded(data, learnt, recipe.input, cache)
    network = _random_network(recipe, images, recipe.fit.seed)
    plain = [k for k, s in enumerate(learnt) if s.label in recipe.label_names]  # without the auxiliary findings
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=_SHRINK, max_iter=5000, class_weight="balanced")
    )  # fmt: skip
    classifier.fit(_pooled(network, recipe, images[plain]), _targets([learnt[k] for k in plain], recipe))
    features = _pooled(network, recipe, decoded(data, test, recipe.input, cache))
    probabilities = np.asarray(classifier.predict_proba(features), np.float32)
    groups = np.array([s.group for s in test], np.str_)
    return report(
        Scored(truth=_targets(test, recipe), probabilities=probabilities, groups=groups), recipe.label_names
    )  # fmt: skip


def randomised_maps(recipe: Recipe, model: Model, data: Path, cache: Path) -> Row:
    """How alike the model's Grad-CAMs are to those of the same network with random weights: in the head, then in all.

    Source: Adebayo et al. 2018, "Sanity checks for saliency maps", section 3 (model parameter randomisation, from the
    top layer down): a map that hardly changes shows the picture's edges, not what was learned. The map is of the class
    that the fitted model predicts. Rank correlation is over the map's places; structural similarity over the maps as
    they are shown, drawn up to the input size. A pair with a map that is the same everywhere cannot be compared.
    """
    test = select(load_index(data, recipe.data), Part.TEST, recipe.label_names)
    chosen = _of_each_label(test, recipe)
    images = decoded(data, test, recipe.input, cache)[chosen]
    batch = to_tensor(recipe, [to_grey(image) for image in images])
    with torch.no_grad():
        classes = torch.cat([model(one[None]) for one in batch]).argmax(1).tolist()
    fitted = _maps(model, batch, classes)
    stages = {"head": _with_new_head(model, recipe), "whole": _all_random(model, recipe, images)}
    maps = {name: _maps(network, batch, classes) for name, network in stages.items()}
    groups = np.array([test[k].group for k in chosen], np.str_)
    shown = [[test[k].label for k in chosen].index(label) for label in dict.fromkeys(test[k].label for k in chosen)]
    return {
        "images": len(chosen),
        "stages": {name: _likeness(fitted, changed, groups, recipe) for name, changed in maps.items()},
        "examples": [
            {"label": test[chosen[i]].label, "said": recipe.label_names[classes[i]]}
            | {name: _scaled(m[i]).round(3).tolist() for name, m in {"fitted": fitted, **maps}.items()}
            for i in shown
        ],
    }


def _random_network(recipe: Recipe, images: Images, seed: int) -> Network:
    """The recipe's network without any learning; its batch norms have seen some of `images`, or all would be one."""
    model = recipe.model.model_copy(update={"weights": "none"})
    spec = recipe.model_copy(update={"model": model, "fit": recipe.fit.model_copy(update={"seed": seed})})
    network = make_network(spec).to(memory_format=torch.channels_last)
    prepare_trunk(network, spec, images)
    return network.eval()


@torch.no_grad()
def _pooled(network: Network, recipe: Recipe, images: Images) -> FloatArray:
    """[N, D]: the mean of each of the trunk's maps."""
    parts = []
    for i in tqdm(range(0, len(images), _BATCH), desc="baseline with random weights", disable=None):
        batch = to_tensor(recipe, [to_grey(image) for image in images[i : i + _BATCH]])
        parts.append(network.trunk(batch).mean((2, 3)).numpy())
    return np.concatenate(parts)


def _targets(samples: Sequence[Sample], recipe: Recipe) -> npt.NDArray[np.int64]:
    return np.array([recipe.label_names.index(s.label) for s in samples], np.int64)


def _of_each_label(samples: Sequence[Sample], recipe: Recipe) -> list[int]:
    """Positions of up to 30 samples, equally many of each label, drawn by the recipe's seed."""
    order = np.random.default_rng(recipe.fit.seed).permutation(len(samples)).tolist()
    most = _MAPS // len(recipe.labels)
    return [k for label in recipe.label_names for k in [i for i in order if samples[i].label == label][:most]]


def _with_new_head(model: Model, recipe: Recipe) -> Model:
    changed = deepcopy(model)
    torch.manual_seed(recipe.fit.seed + 1)
    for module in changed.modules():
        if isinstance(module, Network):
            for layer in module.head.modules():
                if isinstance(layer, torch.nn.Linear | torch.nn.LSTM):
                    layer.reset_parameters()
    return changed


def _all_random(model: Model, recipe: Recipe, images: Images) -> Model:
    if not isinstance(model, Ensemble):
        return _random_network(recipe, images, recipe.fit.seed + 1)
    return Ensemble([_random_network(recipe, images, recipe.fit.seed + 1 + k) for k in range(len(model.members))])


def _maps(model: Model, batch: Tensor, classes: Sequence[int]) -> FloatArray:
    """[N, h, w]: the raw Grad-CAM of each image's class."""
    maps = [cam_of(model.eval(), one[None].clone(), k)[0] for one, k in zip(batch, classes, strict=True)]
    return np.asarray(torch.stack(maps).numpy(), np.float32)


def _likeness(fitted: FloatArray, changed: FloatArray, groups: npt.NDArray[np.str_], recipe: Recipe) -> Row:
    flat = [np.ptp(a) == 0 or np.ptp(b) == 0 for a, b in zip(fitted, changed, strict=True)]
    kept = np.flatnonzero(~np.array(flat))
    pairs = [(fitted[k], changed[k]) for k in kept]
    rank = np.array([spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs])
    shape = (recipe.input.columns, recipe.input.rows)
    drawn = [[cv2.resize(_scaled(m), shape, interpolation=cv2.INTER_LINEAR) for m in pair] for pair in pairs]
    structure = np.array([structural_similarity(a, b, data_range=1.0) for a, b in drawn])  # type: ignore[no-untyped-call]
    return {
        "compared": len(kept),
        "rank_correlation": share(rank, groups[kept]) if len(kept) else None,
        "structural_similarity": share(structure, groups[kept]) if len(kept) else None,
    }


def _scaled(m: FloatArray) -> FloatArray:
    """0 to 1, as a map is shown; a blank one stays blank."""
    return np.asarray(m / (m.max() or 1.0), np.float32)
