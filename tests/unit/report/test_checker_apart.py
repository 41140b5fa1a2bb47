"""The checker shares nothing with the builders: whatever constant of theirs is changed, it notices."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from pydicom import DataElement, Dataset

from cxrnode.errors import ResultError
from cxrnode.report import capture, common, content, sr
from cxrnode.report import context as causes
from cxrnode.report.capture import build_capture
from cxrnode.report.encode import decode, encode
from cxrnode.report.sr import build_sr
from cxrnode.types import ImageResult
from engines.bundle import Code
from tests.support.results import NORMAL, SCENARIOS, UNDETERMINED, analysed, cam, check, context, preview

MIXED = SCENARIOS["mixed"]()
CT = SCENARIOS["ct"]()
WITH_NORMAL = [analysed(MIXED[0].source, NORMAL), *MIXED[1:]]
STUDIES: list[list[ImageResult]] = [
    MIXED, CT, SCENARIOS["captured"](), WITH_NORMAL,
    [analysed()], [analysed(probabilities=NORMAL)], [analysed(probabilities=UNDETERMINED)],
]  # fmt: skip


def everything_passes() -> bool:
    """Whether the checker lets pass every kind of report, and a capture."""
    try:
        for images in STUDIES:
            check(build_sr(images, context()), images)
        image = analysed()
        check(build_capture(image, preview(64, 56), cam(), context(), long_side=256), [image])
    except ResultError:
        return False
    return True


def others(value: object) -> Iterator[object]:
    """The same with one thing changed, for everything that a constant says."""
    if isinstance(value, Code):
        yield from (value.model_copy(update={k: f"{getattr(value, k)}1"}) for k in ("value", "scheme", "meaning"))
    elif isinstance(value, str):
        yield f"{value}1"
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in others(inner))


def constants(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if name.lstrip("_").isupper() and not name.startswith("__") and isinstance(value, Code | str | int | dict):
            for other in others(value):
                yield name, other


# a size, and what `sr` has taken and is changed there
NO_STATEMENT = {(capture, "DEFAULT_LONG_SIDE"), (content, "CONCEPT_MOD"), (content, "OBS_CONTEXT")}
CHANGES = [
    pytest.param(module, name, other, id=f"{module.__name__.rpartition('.')[2]}.{name}-{n}")
    for module in (sr, capture, common, content)
    for n, (name, other) in enumerate(constants(module))
    if (module, name) not in NO_STATEMENT
]


def test_there_is_something_to_change() -> None:
    assert len(CHANGES) > 100
    assert everything_passes()


@pytest.mark.parametrize(("module", "name", "other"), CHANGES)
def test_a_changed_constant_of_a_builder_is_noticed(
    module: ModuleType, name: str, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, other)
    try:
        assert not everything_passes()
    except (ValueError, TypeError, AttributeError):  # highdicom would not build it
        return


def test_verdicts_by_other_thresholds_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (causes.State.PRESENT, causes.State.ABSENT, causes.State.UNDETERMINED):
        monkeypatch.setattr(causes, "state_of", lambda _label, _p, wrong=wrong: wrong)
        monkeypatch.setattr(sr, "state_of", causes.state_of)
        assert not everything_passes()


# --- and whatever element of a result is changed or taken away -------------------------------------------------------

Place = tuple[tuple[int, int], ...]  # (tag, item) on the way down; the item of the last is -1
# what nobody can state without the causes: times, and what is derived from them
FREE = {
    "InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "SeriesDate", "SeriesTime",
    "ContributionDateTime",
    "SOPInstanceUID", "SeriesInstanceUID", "UID", "DeviceUID", "SoftwareVersions", "PixelData",
}  # fmt: skip
OPTIONAL = {"InstanceCreationDate", "InstanceCreationTime", "ContributionDateTime", "FloatingPointValue"}
RESULTS = {
    "report": (encode(build_sr(MIXED[:2], context())), MIXED[:2]),
    "report on CT": (encode(build_sr(CT, context())), CT),
    "capture": (encode(build_capture(MIXED[0], preview(64, 56), cam(), context(), long_side=256)), MIXED[:1]),
}


def places(ds: Dataset, above: Place = ()) -> Iterator[Place]:
    for element in ds:
        yield (*above, (element.tag, -1))
        if element.VR == "SQ":
            for n, item in enumerate(element.value):
                yield from places(item, (*above, (element.tag, n)))


def at(ds: Dataset, place: Place) -> tuple[Dataset, int]:
    """The data set that holds the element, and its tag."""
    for tag, number in place[:-1]:
        ds = ds[tag].value[number]
    return ds, place[-1][0]


def change(element: DataElement) -> None:
    value: Any = element.value
    if element.VR == "SQ":
        element.value = [*value, *value] or [Dataset()]
    elif element.VR == "UI":
        element.value = "1.2.3.4.5"
    elif isinstance(value, bytes):
        element.value = b"x" + value[1:] + b"x" * (len(value) % 2) if value else b"xx"
    elif element.VR in ("US", "IS", "DS", "FD"):
        element.value = value + 1
    else:
        element.value = f"{value}X"


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_whatever_is_taken_away_is_noticed(name: str) -> None:
    data, images = RESULTS[name]
    missed = []
    for place in places(decode(data)):
        ds = decode(data)
        holder, tag = at(ds, place)
        keyword = holder[tag].keyword
        del holder[tag]
        if keyword not in OPTIONAL and not noticed(ds, images):
            missed.append((keyword, place))
    assert missed == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_whatever_is_changed_is_noticed(name: str) -> None:
    data, images = RESULTS[name]
    missed = []
    for place in places(decode(data)):
        ds = decode(data)
        holder, tag = at(ds, place)
        change(holder[tag])
        if holder[tag].keyword not in FREE and not noticed(ds, images):
            missed.append((holder[tag].keyword, place))
    assert missed == []


def noticed(ds: Dataset, images: list[ImageResult]) -> bool:
    try:
        check(ds, images)
    except ResultError:
        return True
    return False
