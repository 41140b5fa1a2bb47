"""What a result depends on besides its images, and every UID that follows from it (design rule 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from hashlib import sha256

import numpy as np

from cxrnode.dicom.uids import derive_uid
from cxrnode.report.patients import patient_of
from cxrnode.report.source import Header
from cxrnode.types import ImageResult, Kind, Prediction
from engines.bundle import GOLDEN, Bundle, Code, Label

DEFAULT_LONG_SIDE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """One run of one model. No UID depends on `analysed_at` or `software_version`, nor on the engine that answered."""

    bundle: Bundle
    analysed_at: datetime  # start of the analysis, timezone-aware: content date and time
    software_version: str
    series_at: datetime | None = None  # when the study began, the same for all results of a series; None: analysed_at
    purpose: Code | None = None  # of the model as contributing equipment, where a site wants its own code

    def __post_init__(self) -> None:
        if self.analysed_at.tzinfo is None:
            raise ValueError("ReportContext.analysed_at has no time zone: use datetime.now().astimezone()")

    @property
    def model(self) -> str:
        return f"{self.bundle.name} {self.bundle.manifest.version}"

    @property
    def device_uid(self) -> str:
        """Identifies the model: another UID with every retraining."""
        return derive_uid("device", self.bundle.digest)

    def series_uid(self, study_instance_uid: str, kind: Kind) -> str:
        return derive_uid("series", study_instance_uid, self.bundle.digest, kind)

    def sr_uid(self, images: Sequence[ImageResult], *, alone: bool = True) -> str:
        """A report on other images, or with another outcome, is another object; the images' order is none.

        alone: the study holds no other patient's images (the report says so where it does).
        """
        causes = sorted(" ".join((*_identity(i), _outcome(i))) for i in images)
        return derive_uid("instance", Kind.SR, self.bundle.digest, *causes, *([] if alone else ["other patients"]))

    def capture_uid(self, image: ImageResult, long_side: int = DEFAULT_LONG_SIDE) -> str:
        settings = f"long_side={long_side}"
        return derive_uid("instance", Kind.CAPTURE, self.bundle.digest, *_identity(image), settings)

    def tracking_uid(self, image: ImageResult) -> str:
        return derive_uid("tracking", self.bundle.digest, *_identity(image))

    def tracking_identifier(self, image: ImageResult) -> str:
        """The end of its UID, for what a report tells apart by UID it tells apart by text, too."""
        return f"{self.bundle.name} {self.tracking_uid(image)[-16:]}"


def _identity(image: ImageResult) -> tuple[str, ...]:
    """Two images may share a SOP Instance UID, so the pixels belong to the identity; study and patient, too, because
    the same image under another one has results of its own."""
    header = Header(image.source)
    patient = sha256(b"\0".join(patient_of(image.source))).hexdigest()
    return header.get("StudyInstanceUID"), patient, header.get("SOPInstanceUID"), image.pixel_digest


def _outcome(image: ImageResult) -> str:
    return "analysed" if image.rejection is None else image.rejection.reason


class State(Enum):
    """A label's verdict by its thresholds, with its code (SNOMED CT)."""

    PRESENT = Code(value="52101004", scheme="SCT", meaning="Present")
    ABSENT = Code(value="272519000", scheme="SCT", meaning="Absent")
    UNDETERMINED = Code(value="373068000", scheme="SCT", meaning="Undetermined")

    @property
    def word(self) -> str:
        return self.name.lower()


def state_of(label: Label, probability: float) -> State:
    if probability >= label.present_at:
        return State.PRESENT
    return State.ABSENT if probability < label.absent_below else State.UNDETERMINED


def finding_of(bundle: Bundle, prediction: Prediction) -> Label | None:
    """The label a reader is told first: the most probable one that is present, an abnormal one before a normal one.

    None: no label reaches its threshold, so the image is undetermined.
    """
    present = [
        (not label.normal, p, label)
        for label, p in zip(bundle.labels, prediction.probabilities, strict=True)
        if state_of(label, p) is State.PRESENT
    ]
    return max(present, key=lambda x: x[:2])[2] if present else None


def finding_word(bundle: Bundle, prediction: Prediction) -> str:
    label = finding_of(bundle, prediction)
    return "undetermined" if label is None else label.name


def map_reference(bundle: Bundle) -> float | None:
    """The raw Grad-CAM value that full colour stands for, of the model and not of an image; None where unknown.

    `calibration.cam_reference` of the manifest, else the median of the golden maps' maxima.
    """
    if bundle.digest not in _REFERENCES:  # a manifest is not hashable, its digest stands for it
        _REFERENCES[bundle.digest] = _read_map_reference(bundle)
    return _REFERENCES[bundle.digest]


_REFERENCES: dict[str, float | None] = {}


def _read_map_reference(bundle: Bundle) -> float | None:
    stated = bundle.manifest.calibration.get("cam_reference")
    if isinstance(stated, int | float) and stated > 0:
        return float(stated)
    if not (bundle.folder / GOLDEN).is_file():
        return None
    return float(np.median(bundle.golden().output.cam.max(axis=(1, 2)))) or None
