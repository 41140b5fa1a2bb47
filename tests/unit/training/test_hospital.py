"""A hospital's DICOM files with a CSV of labels: read as serving reads them, and no patient's number is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import FileDataset

from cxrnode.workers import decode
from engines.bundle import InputShape
from tests.support.make_dicom import chest, write
from training.cache import decoded
from training.datasets import load_index, read_image
from training.fit import LEFT_OUT, fit
from training.recipe import DataSpec, Recipe, RecipeError
from training.sources import read_folder


def patient(seed: int, number: str, **more: Any) -> FileDataset:
    overrides = {"PatientID": number, "PatientAge": "045Y", "InstitutionName": "St. Elsewhere"} | more
    return chest(160, 128, seed=seed, overrides=overrides)


def labelled(data: Path, files: dict[str, FileDataset], head: str, rows: Sequence[str]) -> Path:
    for name, ds in files.items():
        write(ds, data / name)
    (data / "labels.csv").write_text("\n".join([head, *rows]))
    return data


@pytest.fixture(scope="module")
def files() -> dict[str, FileDataset]:
    return {
        "MUELLER/1": patient(1, "4711"),
        "MUELLER/2": patient(2, "4711"),
        "b.dcm": patient(3, "0815", PatientAge="018M", InstitutionName=None),
        "c/lateral.dcm": chest(160, 128, seed=4, view="LL"),
        "d.dcm": patient(5, "", PatientAge=None),
    }


def test_labels_by_instance_study_or_path(files: dict[str, FileDataset], tmp_path: Path) -> None:
    one, two, three, four, five = files.values()
    rows = [
        f"{one.SOPInstanceUID},,,covid,clinic A,",
        f"{two.SOPInstanceUID},,,normal,,",
        f",{three.StudyInstanceUID},,normal,,test",
        f"{four.SOPInstanceUID},,,covid,,",
        ",,d.dcm,viral,,",
    ]
    data = labelled(tmp_path / "data", files, "sop_instance_uid,study_instance_uid,path,label,source,part", rows)
    samples = {s.image: s for s in load_index(data, DataSpec())}
    assert {name: s.label for name, s in samples.items()} == {
        one.SOPInstanceUID: "covid", two.SOPInstanceUID: "normal", three.SOPInstanceUID: "normal",
        five.SOPInstanceUID: "viral",
    }  # fmt: skip
    first, second = samples[one.SOPInstanceUID], samples[two.SOPInstanceUID]
    assert first.group == second.group != samples[three.SOPInstanceUID].group
    assert [samples[ds.SOPInstanceUID].age for ds in (one, three, five)] == [45, 1.5, None]
    assert first.source == "clinic A"
    assert second.source.startswith("institution-")
    assert samples[three.SOPInstanceUID].source == "data"
    assert samples[three.SOPInstanceUID].part == "test"
    written = repr([(s.image, s.group, s.source) for s in samples.values()])
    assert not any(secret in written for secret in ("4711", "0815", "Elsewhere", "MUELLER"))


def test_what_the_gate_refuses_is_listed_with_its_reason(
    files: dict[str, FileDataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{ds.SOPInstanceUID},covid" for ds in list(files.values())[:4]]
    data = labelled(tmp_path / "data", files, "sop_instance_uid,label", rows)
    write(files["b.dcm"], data / "copy.dcm")
    (data / "notes.txt").write_text("no DICOM")
    assert len(load_index(data, DataSpec())) == 3
    reasons = {x.image: x.reason for x in read_folder(data).left_out}
    assert "not a frontal view" in reasons.pop(str(files["c/lateral.dcm"].SOPInstanceUID))
    assert reasons == {
        str(files["d.dcm"].SOPInstanceUID): "no row of labels.csv",
        str(files["b.dcm"].SOPInstanceUID): "a copy of another file",
        "notes.txt": "not a DICOM file",
    }
    assert "4 files of" in capsys.readouterr().err


@pytest.mark.parametrize("syntax", ["explicit", "j2k"])
def test_pixels_are_those_that_serving_sees(tmp_path: Path, syntax: str) -> None:
    ds = chest(1200, 1000, seed=1, syntax=syntax)
    data = labelled(tmp_path / "data", {"a.dcm": ds}, "path,label", ["a.dcm,covid"])
    samples = load_index(data, DataSpec())
    shape = InputShape(channels=3, rows=64, columns=64)
    served = decode({"container": str(data / "a.dcm"), "kind": "file", "offset": 0, "size": 0}, shape).image
    assert served is not None
    images = decoded(data, samples, shape, tmp_path / "cache")
    assert np.abs(images[0] / 255 - served.pixels).max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(read_image(data, samples[0]), served.preview)


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        ("sop_instance_uid,label", "1.2.3,covid", "1 of 1 rows of .* have no file that can be read \\(1.2.3"),
        ("path,label", "gone.dcm,covid", "have no file that can be read \\(gone.dcm; gone.dcm: No such file"),
        ("path,label", "bad.dcm,covid", "bad.dcm: .*DICOM"),
        ("path,label", "../a.dcm,covid", "'../a.dcm', which is not below the data folder"),
        ("sop_instance_uid,label", "../a,covid", "no UID"),
        ("accession,label", "1,covid", "row 1 of .* has not any of path, sop_instance_uid, study_instance_uid"),
        ("path,label", "a.dcm,", "row 1 of .* has not a label"),
        ("path,label", "a.dcm,covid\na.dcm,normal", "two rows for a.dcm"),
        ("path,label", "a.dcm,covid\ncopy.dcm,normal", "labels two copies of .* 'covid' and 'normal'"),
        ("path", "a.dcm", "no column label"),
        ("path,label", "lateral.dcm,covid", "no labelled frontal chest radiograph: 1 not a frontal view"),
    ],
)
def test_labels_that_fit_no_file_are_named(tmp_path: Path, head: str, row: str, words: str) -> None:
    lateral = chest(160, 128, seed=2, view="LL")
    data = labelled(tmp_path / "data", {"a.dcm": patient(1, "1"), "lateral.dcm": lateral}, head, [row])
    write(patient(1, "1"), data / "copy.dcm")
    (data / "bad.dcm").write_bytes(b"")
    with pytest.raises(RecipeError, match=words):
        load_index(data, DataSpec())


def test_pixels_that_serving_refuses_are_named(tmp_path: Path) -> None:
    flat = chest(160, 128, image=np.full((160, 128), 0.5, np.float32))
    data = labelled(tmp_path / "data", {"flat.dcm": flat}, "path,label", ["flat.dcm,covid"])
    shape = InputShape(channels=3, rows=64, columns=64)
    with pytest.raises(RecipeError, match=r"flat\.dcm \(.*constant.*take it out of labels\.csv"):
        decoded(data, load_index(data, DataSpec()), shape, tmp_path / "cache")


def test_a_fit_on_dicom_names_no_patient(recipe: Recipe, tmp_path: Path) -> None:
    files, rows = {}, []
    for k in range(12):
        label, part = recipe.label_names[k % 3], "validation" if k > 8 else "train"
        files[f"MUELLER/{k}"] = patient(k, f"4711-{k}")
        rows.append(f"{files[f'MUELLER/{k}'].SOPInstanceUID},{label},{part}")
    data = labelled(tmp_path / "data", files, "sop_instance_uid,label,part", rows)
    write(chest(160, 128, seed=20, view="LL"), data / "MUELLER" / "lateral")
    run = fit(recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"epochs": 1})}), data, tmp_path / "run")
    assert "no row of labels.csv" in (run / LEFT_OUT).read_text()
    for path in run.iterdir():
        assert not any(secret in path.read_bytes() for secret in (b"4711", b"MUELLER", b"Elsewhere"))
