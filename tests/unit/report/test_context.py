"""Verdicts at their thresholds, the finding that is told first, the causes of a UID, the scale of the map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrnode.report.context import State, finding_of, finding_word, map_reference, state_of
from cxrnode.types import ImageResult, Kind, Prediction, Reason
from engines.bundle import Bundle
from tests.support.bundles import default_labels, make_bundle
from tests.support.results import analysed, context, header, rejected


@pytest.mark.parametrize(
    ("probability", "state"),
    [
        (1.0, State.PRESENT), (0.5, State.PRESENT), (0.4999999, State.UNDETERMINED), (0.2, State.UNDETERMINED),
        (0.1999999, State.ABSENT), (0.0, State.ABSENT),
    ],
)  # fmt: skip
def test_a_threshold_belongs_to_what_is_above_it(probability: float, state: State) -> None:
    label = default_labels()[0]
    assert (label.present_at, label.absent_below) == (0.5, 0.2)
    assert state_of(label, probability) is state


def predicted(*probabilities: float) -> Prediction:
    made = analysed(probabilities=probabilities).prediction
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("probabilities", "finding"),
    [
        ((0.5, 0.4, 0.1), "covid"),
        ((0.6, 0.7, 0.0), "viral"),  # the more probable
        ((0.7, 0.6, 0.0), "covid"),
        ((0.6, 0.6, 0.0), "covid"),  # the first
        ((0.5, 0.1, 0.99), "covid"),  # an abnormal one before a normal one
        ((0.49, 0.1, 0.5), "normal"),
        ((0.49, 0.49, 0.49), "undetermined"),
        ((0.1, 0.1, 0.1), "undetermined"),
    ],
)
def test_the_finding_that_is_told_first(probabilities: tuple[float, ...], finding: str) -> None:
    bundle, prediction = make_bundle(), predicted(*probabilities)
    assert finding_word(bundle, prediction) == finding
    label = finding_of(bundle, prediction)
    assert (label.name if label else "undetermined") == finding


def test_each_label_has_thresholds_of_its_own() -> None:
    low = default_labels()[0].model_copy(update={"present_at": 0.3, "absent_below": 0.1})
    bundle = make_bundle(labels=(low, *default_labels()[1:]))
    assert finding_word(bundle, predicted(0.3, 0.45, 0.25)) == "covid"
    assert (state_of(low, 0.1), state_of(low, 0.09)) == (State.UNDETERMINED, State.ABSENT)


# --- UIDs

OTHER = "2.25.7799"
SAME = ("2.25.77", "2.25.78", "2.25.79")
CHANGES: dict[str, Callable[[], ImageResult]] = {
    "another image": lambda: analysed(header(uids=("2.25.77", "2.25.78", OTHER))),
    "other pixels": lambda: analysed(header(uids=SAME), digest="c3"),
    "another study": lambda: analysed(header(uids=(OTHER, "2.25.78", "2.25.79"))),
    "another patient": lambda: analysed(header(uids=SAME, overrides={"PatientID": "P2"})),
    "another issuer": lambda: analysed(header(uids=SAME, overrides={"IssuerOfPatientID": "B"})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_makes_it_another_image_makes_other_results(change: str) -> None:
    here, image, other = context(), analysed(header(uids=SAME)), CHANGES[change]()
    assert here.sr_uid([image]) != here.sr_uid([other])
    assert here.capture_uid(image) != here.capture_uid(other)
    assert here.tracking_uid(image) != here.tracking_uid(other)


def test_what_is_no_cause_changes_no_uid() -> None:
    here = context()
    image = analysed(header(uids=SAME))
    same = analysed(
        header(uids=("2.25.77", OTHER, "2.25.79"), overrides={"PatientName": "X", "PatientID": "PHANTOM-1 "})
    )
    assert here.sr_uid([image]) == here.sr_uid([same])
    assert here.capture_uid(image) == here.capture_uid(same) == here.capture_uid(image, 1024)
    assert here.tracking_uid(image) == here.tracking_uid(same)


def test_the_outcome_is_a_cause_of_the_report_alone() -> None:
    here = context()
    image, lateral, crashed = analysed(), rejected(), rejected(reason=Reason.DECODER_CRASHED)
    lateral, crashed = (replace(r, pixel_digest=image.pixel_digest) for r in (lateral, crashed))
    assert len({here.sr_uid([i]) for i in (image, lateral, crashed)}) == 3
    assert len({here.tracking_uid(i) for i in (image, lateral, crashed)}) == 1


def test_an_image_more_or_twice_is_another_report_in_whatever_order() -> None:
    here, one, two = context(), analysed(header(uids=SAME)), analysed(header(uids=("2.25.77", "2.25.78", OTHER)))
    assert here.sr_uid([one, two]) == here.sr_uid([two, one])
    assert len({here.sr_uid([one]), here.sr_uid([one, two]), here.sr_uid([one, one])}) == 3
    assert here.sr_uid([one]) != here.sr_uid([one], alone=False)


def test_series_by_study_model_and_kind() -> None:
    here, there = context(), context(make_bundle(version="2"))
    uids = [here.series_uid("1.2", Kind.SR), here.series_uid("1.2", Kind.CAPTURE), here.series_uid("1.3", Kind.SR),
            there.series_uid("1.2", Kind.SR), here.device_uid, there.device_uid]  # fmt: skip
    assert len(set(uids)) == 6


# --- the scale of the map


def stating(reference: Any, folder: Path = Path("/nonexistent"), digest: str = "") -> Bundle:
    manifest = make_bundle().manifest.model_copy(update={"calibration": {"cam_reference": reference}})
    return replace(make_bundle(), manifest=manifest, folder=folder, digest=digest or f"states {reference}")


@pytest.mark.parametrize(("stated", "read"), [(3, 3.0), (0.25, 0.25), (0, None), (-1, None), ("2", None), (None, None)])
def test_the_reference_that_a_bundle_states(stated: Any, read: float | None) -> None:
    assert map_reference(stating(stated)) == read


def test_the_median_of_the_golden_maps_stands_for_a_reference(tmp_path: Path) -> None:
    maps = np.zeros((3, 4, 4), np.float32)
    maps[0, 1, 2], maps[1, 3, 0], maps[2, 0, 3] = 1.0, 7.0, 3.0
    golden = {"probabilities": np.zeros((3, 3)), "class_index": np.zeros(3), "batch": np.zeros((3, 1))}
    np.savez(tmp_path / "golden.npz", cam=maps, **golden)  # type: ignore[arg-type]
    assert map_reference(stating(None, tmp_path, "golden")) == 3.0
    assert map_reference(stating(5.0, tmp_path, "stated")) == 5.0
    np.savez(tmp_path / "golden.npz", cam=np.zeros_like(maps), **golden)  # type: ignore[arg-type]
    assert map_reference(stating(None, tmp_path, "zero")) is None
    assert map_reference(stating(None, tmp_path, "golden")) == 3.0  # it is read once
