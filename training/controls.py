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
from torch.nn import functional as F  # noqa: N812

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
_SEED, _FILTERS, _WIDTH = 0, 96, 7  # of the baseline: how many random filters, and how wide
_SIDE, _GRID = 96, 4  # pixels of an image, and places that the answers are averaged to, along a side
_SHRINK = (1e-3, 1e-2, 1e-1)  # of the linear classifier (1 / lambda): there are more features than a label has images


def random_baseline(recipe: Recipe, data: Path, cache: Path) -> Row:
    """`report` of a linear classifier on the responses to random filters, test part; the same for every network.

    What it reaches needs no sight of disease: size, brightness and coarse texture, which tell ages and sources apart,
    do. One layer of random filters, rectified and averaged over a grid, is hard to beat where images are few (Jarrett
    et al. 2009); the last map of a deep trunk with random weights tells less. How much the classifier is shrunk is
    chosen on the validation part. `cache` is the folder of decoded images.
    """
    samples = load_index(data, recipe.data)
    chosen = {part: used(samples, part, recipe) for part in (Part.TRAIN, Part.VALIDATION, Part.TEST)}
    plain = {part: [k for k, s in enumerate(of) if s.label in recipe.label_names] for part, of in chosen.items()}
    x = {part: _responses(recipe, decoded(data, of, recipe.input, cache)[plain[part]]) for part, of in chosen.items()}
    y = {part: _targets([of[k] for k in plain[part]], recipe) for part, of in chosen.items()}
    classifiers = [
        make_pipeline(StandardScaler(), LogisticRegression(C=shrink, max_iter=5000, class_weight="balanced"))
        for shrink in _SHRINK
    ]
    fitted = [classifier.fit(x[Part.TRAIN], y[Part.TRAIN]) for classifier in classifiers]
    best = max(fitted, key=lambda classifier: float(classifier.score(x[Part.VALIDATION], y[Part.VALIDATION])))
    scored = Scored(
        truth=y[Part.TEST], probabilities=np.asarray(best.predict_proba(x[Part.TEST]), np.float32),
        groups=np.array([s.group for s in chosen[Part.TEST]], np.str_),
    )  # fmt: skip
    return report(scored, recipe.label_names)


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
    batch = to_tensor(recipe, [to_grey(image) for image in images], next(model.parameters()).device)
    with torch.no_grad():
        classes = torch.cat([model(one[None]) for one in batch]).argmax(1).tolist()
    fitted = _maps(model, batch, classes)
    stages = {"head": _with_new_head(model, recipe), "whole": _all_random(model, recipe, images)}
    maps = {name: _maps(network.to(batch.device), batch, classes) for name, network in stages.items()}
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


def _responses(recipe: Recipe, images: Images) -> FloatArray:
    """[N, D]: how strongly each place of each image, as the network sees it, answers to each of the random filters."""
    filters = torch.from_numpy(np.random.default_rng(_SEED).standard_normal((_FILTERS, 1, _WIDTH, _WIDTH), np.float32))
    filters = filters - filters.mean((2, 3), keepdim=True)  # blind to plain brightness, as edges are
    parts = []
    for i in range(0, len(images), _BATCH):
        batch = to_tensor(recipe, [to_grey(image) for image in images[i : i + _BATCH]])[:, :1]
        answers = F.conv2d(F.adaptive_avg_pool2d(batch, _SIDE), filters, stride=2).abs()
        parts.append(F.adaptive_avg_pool2d(answers, _GRID).flatten(1).numpy())
    return np.concatenate(parts)


def _targets(samples: Sequence[Sample], recipe: Recipe) -> npt.NDArray[np.int64]:
    return np.array([recipe.label_names.index(s.label) for s in samples], np.int64)


def _of_each_label(samples: Sequence[Sample], recipe: Recipe) -> list[int]:
    """Positions of up to 30 samples, equally many of each label, drawn by the recipe's seed."""
    order = np.random.default_rng(recipe.fit.seed).permutation(len(samples)).tolist()
    most = _MAPS // len(recipe.labels)
    return [k for label in recipe.label_names for k in [i for i in order if samples[i].label == label][:most]]


def _with_new_head(model: Model, recipe: Recipe) -> Model:
    changed = deepcopy(model).cpu()  # the same random weights on every device
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
    return np.asarray(torch.stack(maps).cpu().numpy(), np.float32)


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
