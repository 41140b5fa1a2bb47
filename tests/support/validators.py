"""The public validators: dciodvfy (dicom3tools), dsrdump and dsr2html (DCMTK), PixelMed's SR validator.

Each function takes files and returns findings, [] for a good object. The tools are called by absolute path: an
activated virtual environment shadows DCMTK's with pynetdicom's.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

DCIODVFY, DSRDUMP, DSR2HTML, JAVA = (Path("/usr/bin") / t for t in ("dciodvfy", "dsrdump", "dsr2html", "java"))
PIXELMED = Path("/usr/share/java/pixelmed.jar")
_BATCH = Path(__file__).parent / "PmSRBatch.java"
# Procedure reported: TID 1500 row 4 has a baseline (BCID 100), from which any other procedure may deviate; PixelMed
# takes it for a closed list, although its own copy of the context group says extensible.
_FALSE_POSITIVE = re.compile(r'\[Row 4\] CODE \(121058,DCM,"Procedure reported"\).*not found in context group 100$')


def missing_validators() -> list[str]:
    return [str(p) for p in (DCIODVFY, DSRDUMP, DSR2HTML, JAVA, PIXELMED) if not p.exists()]


def dciodvfy(path: Path) -> list[str]:
    """IOD, VR and character set errors; its exit status counts too."""
    done = _run([DCIODVFY, "-new", path])
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    return errors or ([f"dciodvfy exited with {done.returncode}"] if done.returncode else [])


def dsrdump(path: Path) -> list[str]:
    """What DCMTK's SR reader refuses (E:, F:)."""
    return _dcmtk([DSRDUMP, path])


def dsr2html(path: Path, output: Path) -> list[str]:
    """Renders the report as a page, the way a viewer would."""
    findings = _dcmtk([DSR2HTML, path, output])
    return findings or ([] if output.stat().st_size else ["dsr2html wrote nothing"])


def pixelmed_sr(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """Template conformance (TID 1500 and all below it) of many reports, in one JVM with the XPath limits lifted."""
    limits = [f"-Djdk.xml.{x}=0" for x in ("xpathTotalOpLimit", "xpathExprGrpLimit", "xpathExprOpLimit")]
    quick_start = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-DontCompileHugeMethods"]  # halves the time
    command: list[Path | str] = [JAVA, "-Xmx1500m", *quick_start, *limits, "-cp", PIXELMED, _BATCH, *paths]
    done = _run(command)
    if done.returncode:
        raise RuntimeError(f"PixelMed's validator did not run: {done.stderr[-2000:]}")
    lines: dict[Path, list[str]] = {p: [] for p in paths}
    for line in done.stdout.splitlines():
        path, _, text = line.partition("\t")
        lines[Path(path)].append(text.strip())
    return {path: _pixelmed_findings(answer) for path, answer in lines.items()}


def _pixelmed_findings(answer: Sequence[str]) -> list[str]:
    bad = ("Error", "illegal relationship", "not in template row order")
    findings = [line for line in answer if any(b in line for b in bad) and not _FALSE_POSITIVE.search(line)]
    if "Root Template Validation Complete" not in answer:
        findings.append("the root template was not validated")
    return findings


def _dcmtk(command: Sequence[Path]) -> list[str]:
    done = _run(command)
    findings = [line for line in done.stderr.splitlines() if re.match(r"[EF]:", line)]
    return findings or ([f"{command[0].name} exited with {done.returncode}"] if done.returncode else [])


def _run(command: Sequence[Path | str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, errors="replace", timeout=300, check=False
    )
