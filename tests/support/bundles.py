"""A small real Bundle for tests that need no weights: labels, thresholds and codes as a shipped one has them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engines.bundle import MODEL, Bundle, Code, InputShape, Label, Manifest, Tolerance

COVID = Code(value="840544004", scheme="SCT", meaning="Suspected COVID-19")
VIRAL = Code(value="75570004", scheme="SCT", meaning="Viral pneumonia")
NORMAL = Code(value="17621005", scheme="SCT", meaning="Normal")


def make_bundle(*, version: str = "1.0.0", labels: tuple[Label, ...] | None = None) -> Bundle:
    manifest = Manifest(
        name="cxr3-test",
        version=version,
        description="for tests",
        architecture="none",
        input=InputShape(channels=3, rows=160, columns=160),
        preprocess_version=1,
        labels=labels or default_labels(),
        calibration={"cam_reference": 2.0},
        tolerance={"fp32": Tolerance(probabilities=1e-4, cam=1e-3, tie=1e-4)},
        files={MODEL: "ab" * 32},
        data={},
        metrics={},
        intended_use="research use, not for diagnosis",
        license="Apache-2.0",
    )
    digest = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
    return Bundle(folder=Path("/nonexistent"), manifest=manifest, digest=digest)


def default_labels() -> tuple[Label, ...]:
    return (
        Label(name="covid", code=COVID, present_at=0.5, absent_below=0.2),
        Label(name="viral", code=VIRAL, present_at=0.5, absent_below=0.2),
        Label(name="normal", code=NORMAL, normal=True, present_at=0.5, absent_below=0.2),
    )


def private_labels() -> tuple[Label, ...]:
    """As a site may have them: a private scheme, a long code value, a meaning that is not ASCII."""
    codes = (
        Code(value="CXR-1", scheme="99SITE", meaning="COVID-19 appearance"),
        Code(value="a-code-value-of-more-than-16", scheme="99SITE", meaning="Virale Lungenentzündung"),
        NORMAL,
    )
    return tuple(label.model_copy(update={"code": c}) for label, c in zip(default_labels(), codes, strict=True))
