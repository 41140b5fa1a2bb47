"""The engine that a result names is the one that answered for its images, whichever is at work when it is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydicom import Dataset

from cxrnode.report.capture import build_capture
from cxrnode.report.sr import build_sr
from cxrnode.types import ImageResult
from tests.support.results import SCENARIOS, analysed, cam, check, context, header, preview, rejected

GPU, CPU = "gpu tensorrt 11.4 fp16", "cpu onnxruntime 1.31.1 fp32"


def by(engine: str, number: int) -> ImageResult:
    image = analysed(header(uids=("2.25.77", "2.25.78", f"2.25.79{number}")), digest=f"a{number}")
    assert image.prediction is not None
    return replace(image, prediction=replace(image.prediction, engine=engine))


def named(ds: Dataset) -> list[list[str]]:
    """The engines of each measurement group."""
    (measured,) = (i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    texts = [[str(i.get("TextValue", "")) for i in group.ContentSequence] for group in measured.ContentSequence]
    return [[t.removeprefix("engine ") for t in group if t.startswith("engine ")] for group in texts]


def engines(ds: Dataset) -> list[str]:
    return [v for v in ds.SoftwareVersions if v.startswith(("gpu ", "cpu "))]


@pytest.mark.parametrize("order", [(GPU, CPU), (CPU, GPU)])
def test_each_image_of_a_report_names_the_engine_that_answered_for_it(order: tuple[str, str]) -> None:
    images = [by(engine, number) for number, engine in enumerate(order)]
    ds = build_sr(images, context())
    check(ds, images)
    assert named(ds) == [[order[0]], [order[1]]]
    assert engines(ds) == [CPU, GPU]


def test_an_image_that_was_not_analysed_names_none() -> None:
    images = [by(GPU, 1), rejected(header(uids=("2.25.77", "2.25.78", "2.25.792")))]
    ds = build_sr(images, context())
    assert named(ds) == [[GPU], []]
    assert engines(ds) == [GPU]
    assert not engines(build_sr(SCENARIOS["lateral"](), context()))


def test_a_capture_names_the_engine_that_answered() -> None:
    ds = build_capture(by(GPU, 1), preview(), cam(), context())
    check(ds, [by(GPU, 1)])
    assert engines(ds) == [GPU]


def test_the_engine_is_no_cause_of_a_uid() -> None:
    """Analysed once more by another engine, it is the same result that takes the place of the first."""
    uids = {str(build_sr([by(engine, 1)], context()).SOPInstanceUID) for engine in (GPU, CPU)}
    assert len(uids) == 1
