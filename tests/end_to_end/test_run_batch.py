"""The main job as a user runs it: outcomes, files, exit codes, errors."""

from __future__ import annotations

import gc
import json
import shutil
import sqlite3
import tarfile
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.fileset import FileSet

from cxrnode.dicom.uids import is_valid_uid
from cxrnode.store import ledger
from cxrnode.store.database import Database
from cxrnode.types import Outcome, Reason
from tests.support.audit import faults
from tests.support.batch import by_name, objects, rows, run, studies
from tests.support.make_dicom import chest, to_bytes, write

SPEC_COLUMNS = (
    "path,study_instance_uid,series_instance_uid,sop_instance_uid,outcome,reason,class,"
    "p_covid,p_viral,p_normal,bundle,engine,sr,capture"
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over one of everything; returns the folder that holds `in` and `out`."""
    top = tmp_path_factory.mktemp("mixed")
    folder = studies(top / "in", 2, 2)
    shutil.copy(folder / "s000" / "i0", folder / "s001" / "copy-of-s000-i0")
    ids = ("1.2.826.0.1.1", "1.2.826.0.1.1.1", "1.2.826.0.1.1.1.1")
    write(chest(256, 220, seed=77, uids=ids), folder / "z" / "same-uid-other-film")
    write(chest(256, 220, seed=10, view="LL"), folder / "lateral")
    write(chest(256, 220, seed=11, body_part="HAND", overrides={"StudyDescription": "HAND"}), folder / "hand")
    write(chest(256, 220, seed=12, overrides={"PixelData": None}), folder / "no-pixels")
    raw = to_bytes(chest(256, 220, seed=13))
    (folder / "truncated").write_bytes(raw[: len(raw) * 2 // 3])
    write(chest(256, 220, seed=14, overrides={"StudyInstanceUID": None}), folder / "no-study-uid")
    (folder / "text.dcm").write_text("hello")
    black = chest(256, 220, seed=15)
    black.PixelData = bytes(len(black.PixelData))
    write(black, folder / "black")
    inner = BytesIO()
    with zipfile.ZipFile(inner, "w") as z:
        z.writestr("x", b"y")
    with zipfile.ZipFile(folder / "more.bin", "w") as z:
        z.writestr("nested.zip", inner.getvalue())
        z.writestr("zipped", to_bytes(chest(256, 220, seed=16, syntax="j2k")))
    done = run(folder, out=top / "out", options=("--batch-size", "4"))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return top


def test_every_file_seen_has_one_row_with_its_outcome(mixed: Path) -> None:
    found = {name: (row["outcome"], row["reason"]) for name, row in by_name(mixed / "out").items()}
    expected = {
        "i0": ("analysed", ""), "i1": ("analysed", ""), "zipped": ("analysed", ""),
        "copy-of-s000-i0": ("duplicate", Reason.DUPLICATE),
        "same-uid-other-film": ("analysed", Reason.UID_CONFLICT),
        "lateral": ("not_analysed", Reason.LATERAL),
        "hand": ("not_analysed", Reason.WRONG_BODY_PART),
        "no-pixels": ("not_analysed", Reason.NO_PIXELS),
        "truncated": ("failed", Reason.TRUNCATED),
        "no-study-uid": ("failed", Reason.MISSING_UID),
        "text.dcm": ("not_analysed", Reason.NOT_DICOM),
        "black": ("not_analysed", Reason.IMPLAUSIBLE_PIXELS),
        "nested.zip": ("failed", Reason.NESTED_ARCHIVE),
    }  # fmt: skip
    assert found == expected
    assert len(rows(mixed / "out")) == len(expected) + 2  # two studies hold an i0 and an i1


def test_the_csv_has_the_promised_columns_and_sane_values(mixed: Path) -> None:
    header = (mixed / "out" / "results.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.startswith(SPEC_COLUMNS)
    for row in rows(mixed / "out"):
        assert row["outcome"] in set(Outcome)
        p = [float(row[k]) for k in row if k.startswith("p_") and row[k]]
        assert len(p) == (3 if row["outcome"] == "analysed" else 0)
        if p:
            assert sum(p) == pytest.approx(1, abs=1e-4)
            assert row["class"] == ("covid", "viral", "normal")[p.index(max(p))]
            assert (mixed / "out" / row["capture"]).is_file()
        if row["sr"]:
            assert (mixed / "out" / row["sr"]).is_file()


def test_one_sr_a_study_and_one_capture_an_analysed_image(mixed: Path) -> None:
    made = objects(mixed / "out")
    table = rows(mixed / "out")
    captures = sorted(p for p, ds in made.items() if ds.Modality != "SR")
    reports = sorted(p for p, ds in made.items() if ds.Modality == "SR")
    assert captures == sorted(row["capture"] for row in table if row["outcome"] == "analysed")
    assert reports == sorted({row["sr"] for row in table if row["sr"]})
    reported = {Reason(r["reason"]).in_report if r["reason"] else True for r in table if r["sr"]}
    assert reported == {True} or {r["reason"] for r in table if r["sr"]} <= {"", *Reason}
    assert len(reports) == len({row["study_instance_uid"] for row in table if row["sr"]})
    for path, ds in made.items():
        assert path.split("/")[1] == ds.StudyInstanceUID
        assert is_valid_uid(ds.SOPInstanceUID)
        assert ds.StudyInstanceUID in {row["study_instance_uid"] for row in table}


def test_what_was_not_analysed_is_in_its_study_s_report(mixed: Path) -> None:
    table = by_name(mixed / "out")
    for name in ("lateral", "hand", "no-pixels", "truncated", "black"):
        report = objects(mixed / "out")[table[name]["sr"]]
        said = " ".join(str(e.value) for e in report.iterall() if e.keyword == "TextValue")
        assert Reason(table[name]["reason"]).text in said, name


def test_the_ledger_tells_every_item_and_its_chain_holds(mixed: Path) -> None:
    database = Database(mixed / "out" / "ledger.sqlite")
    with database.begin() as c:
        assert faults(c) == []
        told = [e.detail["path"] for e in ledger.events(c) if e.kind in set(Outcome)]
        kinds = [e.kind for e in ledger.events(c)]
    database.close()
    assert sorted(map(str, told)) == sorted(row["path"] for row in rows(mixed / "out"))
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_complete"


def test_run_json_says_what_ran(mixed: Path) -> None:
    summary = json.loads((mixed / "out" / "run.json").read_text())
    assert summary["state"] == "complete"
    assert sum(summary["outcomes"].values()) == len(rows(mixed / "out"))
    assert len(summary["bundle"]["digest"]) == 64
    assert summary["versions"]["cxrnode"]
    assert set(summary["seconds"]) == {"scan", "analyse"}


def test_started_again_it_does_nothing_twice(mixed: Path, tmp_path: Path) -> None:
    out = shutil.copytree(mixed / "out", tmp_path / "out")
    before = (out / "results.csv").read_bytes(), {p: p.stat().st_mtime_ns for p in (out / "dicom").rglob("*")}
    again = run(mixed / "in", out=out, options=("--quiet",))
    assert again.returncode == 1  # what failed is still failed, and still listed
    assert "truncated" in again.stderr
    after = (out / "results.csv").read_bytes(), {p: p.stat().st_mtime_ns for p in (out / "dicom").rglob("*")}
    assert after == before


def test_our_own_results_are_not_analysed(mixed: Path, tmp_path: Path) -> None:
    done = run(mixed / "out" / "dicom", out=tmp_path / "out", options=("--format", "json"))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert {(r["outcome"], r["reason"]) for r in results} == {("not_analysed", "own_result")}
    assert not (tmp_path / "out" / "dicom").exists()


def test_zip_tar_and_dicomdir_give_what_the_folder_gives(tmp_path: Path) -> None:
    folder = studies(tmp_path / "in", 3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for path in sorted(folder.rglob("i*")):
            z.write(path, path.relative_to(folder))
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as t:
        t.add(folder, "x")
    write_dicomdir(sorted(folder.rglob("i*")), tmp_path / "media")
    seen = []
    for n, archive in enumerate((folder, tmp_path / "a.zip", tmp_path / "b.tar.gz", tmp_path / "media" / "DICOMDIR")):
        done = run(archive, out=tmp_path / f"out{n}", options=("--quiet",))
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / f"out{n}" / "spool").exists()
        seen.append(sorted(p for p in objects(tmp_path / f"out{n}")))
    assert seen[1:] == seen[:1] * 3
    assert len(seen[0]) == 6


def write_dicomdir(files: list[Path], media: Path) -> None:
    fs = FileSet()
    for path in files:
        fs.add(path)
    fs.write(media)
    del fs
    with warnings.catch_warnings():  # pydicom leaves its staging folder to the garbage collector, which complains
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_formats(tmp_path: Path) -> None:
    folder = studies(tmp_path / "in", 1)
    table = run(folder, out=tmp_path / "out")
    assert "1 analysed" in table.stdout
    assert "analysing: 1 of 1 file," in table.stderr
    as_csv = run(folder, out=tmp_path / "out", options=("--format", "csv"))
    assert as_csv.stdout == (tmp_path / "out" / "results.csv").read_text(encoding="utf-8")
    quiet = run(folder, out=tmp_path / "out", options=("--quiet",))
    assert (quiet.stdout, quiet.stderr) == ("", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--bundle", "nonesuch"), "no model bundle 'nonesuch'"),
        (("--send", "ORTHANC"), "is not AET@HOST:PORT"),
        (("--batch-size", "0"), "--batch-size"),
        (("--engine", "warp"), "'warp' is not one of"),
    ],
)
def test_usage_errors_say_how_to_mend_them(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    done = run(studies(tmp_path / "in", 1), out=tmp_path / "out", options=options)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_archive_is_a_usage_error(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere", out=tmp_path / "out")
    assert done.returncode == 2
    assert "does not exist" in done.stderr


def test_an_output_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / "dicom").mkdir(parents=True)
    (tmp_path / "out" / "dicom" / "precious").touch()
    done = run(studies(tmp_path / "in", 1), out=tmp_path / "out", options=("--restart",))
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert (tmp_path / "out" / "dicom" / "precious").exists()


def test_another_archive_wants_another_folder_or_a_restart(tmp_path: Path) -> None:
    first, second = studies(tmp_path / "a", 1), studies(tmp_path / "b", 2)
    assert run(first, out=tmp_path / "out").returncode == 0
    refused = run(second, out=tmp_path / "out")
    assert refused.returncode == 2
    assert "--restart" in refused.stderr
    again = run(second, out=tmp_path / "out", options=("--restart",))
    assert again.returncode == 0
    assert len(rows(tmp_path / "out")) == 2


def test_files_added_to_the_archive_are_taken_in_by_the_next_call(tmp_path: Path) -> None:
    folder = studies(tmp_path / "in", 1)
    assert run(folder, out=tmp_path / "out").returncode == 0
    studies(tmp_path / "in", 2)
    assert run(folder, out=tmp_path / "out").returncode == 0
    assert [row["outcome"] for row in rows(tmp_path / "out")] == ["analysed"] * 2


def test_a_film_added_to_a_reported_study_has_one_row_and_every_row_names_the_newest_report(tmp_path: Path) -> None:
    folder = studies(tmp_path / "in", 1, 1)
    assert run(folder, out=tmp_path / "out").returncode == 0
    studies(tmp_path / "in", 1, 2)
    assert run(folder, out=tmp_path / "out").returncode == 0
    table = rows(tmp_path / "out")
    assert [Path(row["path"]).name for row in table] == ["i0", "i1"]
    (newest,) = {row["sr"] for row in table}
    report = objects(tmp_path / "out")[newest]
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    assert len(evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence) == 2


def test_two_runs_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = run(studies(tmp_path / "in", 1), out=tmp_path / "out")
    assert done.returncode == 2
    assert "another cxrnode" in done.stderr


def test_no_patient_data_on_the_terminal(tmp_path: Path) -> None:
    identity = {"PatientName": "Zebrafink^Yolanda", "PatientID": "ID4711", "AccessionNumber": "ACC0815"}
    write(chest(256, 220, overrides=identity), tmp_path / "in" / "a")
    write(chest(256, 220, seed=1, view="LL", overrides=identity), tmp_path / "in" / "b")
    done = run(tmp_path / "in", out=tmp_path / "out")
    for secret in ("Zebrafink", "ID4711", "ACC0815"):
        assert secret not in done.stdout + done.stderr
        with sqlite3.connect(tmp_path / "out" / "ledger.sqlite") as c:
            assert not c.execute("SELECT 1 FROM ledger WHERE detail LIKE ?", (f"%{secret}%",)).fetchall()
