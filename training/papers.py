"""What the two papers report, as they report it: the figures that `reproduce` sets ours beside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A figure of a paper. label None: of all classes; metric: see `training.reproduce.ours`."""

    recipe: str
    label: str | None = None
    metric: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """What a paper says of its data and results. Its other numbers are the defaults of the recipes."""

    citation: str
    recipes: tuple[str, ...]
    changes: tuple[str, ...] = ()  # of the recipes, so that our data resemble the paper's
    images: dict[str, int]  # of each class, all parts
    split: str
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]


def _claims(recipe: str, label: str | None, **values: float) -> tuple[Claim, ...]:
    return tuple(Claim(recipe=recipe, label=label, metric=metric, value=value) for metric, value in values.items())


PAPER_1 = Paper(
    citation="Sakib et al. 2020, doi 10.1101/2020.11.08.20227819",
    recipes=("resnet50-snapshot",),
    changes=(
        "data.most={ covid = 219, viral = 1345, normal = 1341 }",
        # its viral and normal images are these children's, all of them; no adult is in either class
        'data.sources={ viral = ["kaggle_kermany"], normal = ["kaggle_kermany"] }',
        'data.external=["figure1", "actualmed", "nih_darkcovidnet"]',
    ),
    images={"covid": 219, "viral": 1345, "normal": 1341},
    split="80 % train, 10 % validation, 10 % test",
    claims=(
        *_claims("resnet50-snapshot", None, accuracy=0.96, validation_accuracy=0.97),
        *_claims("resnet50-snapshot", "covid", precision=1.0, recall=1.0, specificity=1.0, f1=1.0, auc=1.0),
    ),
    notes=(
        "The paper gives 1.00 and 100 % without digits after the point.",
        "It gives an average of 96.9 % and losses of 0.11 and 0.14: of what is not clear enough to compute it here.",
        "Which 219 COVID-19 images it used is not known: as many are drawn here by patient.",
    ),
)

PAPER_2 = Paper(
    citation="Islam et al. 2020, doi 10.1101/2020.08.24.20181339",
    recipes=("vgg19-rnn", "densenet121-rnn", "inceptionv3-rnn", "inceptionresnetv2-rnn"),
    images={"covid": 2313, "pneumonia": 2313, "normal": 2313},
    split="80 % train (five-fold cross-validation within), 20 % test",
    claims=(
        *_claims("vgg19-rnn", "covid", accuracy=0.9985, auc=0.9999, precision=0.9978, recall=0.9978, f1=0.9978),
        *_claims("vgg19-rnn", None, training_accuracy=0.9901, validation_accuracy=0.9774),
        *_claims("inceptionv3-rnn", "covid", accuracy=0.9855, auc=0.9995, precision=0.9644, recall=0.9935, f1=0.9787),
        *_claims("inceptionv3-rnn", None, training_accuracy=0.9803, validation_accuracy=0.9491),
    ),
    notes=(
        "The paper's accuracy is read as that of COVID-19 against the rest, for only so do its figures agree: of 463 "
        "COVID-19 and 925 other test images, recall and precision of 99.78 % are one missed and one false, 2 of 1388 "
        "wrong, 99.86 %; for InceptionV3 three missed and 17 false, 20 wrong, 98.56 %.",
        "Its table is of epoch 100 of 150.",
        "It names VGG19 the best and InceptionV3 the lowest; the other two's figures are not at hand here.",
    ),
)

PAPERS = {"paper1": PAPER_1, "paper2": PAPER_2}
