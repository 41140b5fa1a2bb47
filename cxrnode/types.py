"""What flows between the stages: frozen, slotted, keyword-only."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


class Reason(StrEnum):
    """Why an item has no analysis. `.text` says it in words; `.in_report` whether its study's SR says it too."""

    NOT_DICOM = "not_dicom"
    TRUNCATED = "truncated"
    MISSING_UID = "missing_uid"
    NO_PIXELS = "no_pixels"
    UNDECODABLE = "undecodable"
    WRONG_MODALITY = "wrong_modality"
    WRONG_BODY_PART = "wrong_body_part"
    LATERAL = "lateral"
    MULTI_FRAME = "multi_frame"
    NOT_A_PATIENT = "not_a_patient"
    ORIENTATION_UNCLEAR = "orientation_unclear"
    IMPLAUSIBLE_PIXELS = "implausible_pixels"
    OWN_RESULT = "own_result"
    NOT_AN_IMAGE = "not_an_image"
    UNREADABLE_FILE = "unreadable_file"
    TOO_LARGE = "too_large"
    NESTED_ARCHIVE = "nested_archive"
    LINK = "link"
    DICOMDIR = "dicomdir"
    DECODER_CRASHED = "decoder_crashed"
    INFERENCE_FAILED = "inference_failed"
    RESULT_INVALID = "result_invalid"
    GAVE_UP = "gave_up"
    UNEXPECTED_ERROR = "unexpected_error"
    DUPLICATE = "duplicate"
    UID_CONFLICT = "uid_conflict"
    SEVERAL_PATIENTS = "several_patients"

    @property
    def text(self) -> str:
        return _REASON_TEXT[self]

    @property
    def outcome(self) -> Outcome:
        if self is Reason.DUPLICATE:
            return Outcome.DUPLICATE
        return Outcome.FAILED if self in _FAILURES else Outcome.NOT_ANALYSED

    @property
    def in_report(self) -> bool:
        return self not in _UNREPORTED


class Outcome(StrEnum):
    ANALYSED = "analysed"
    NOT_ANALYSED = "not_analysed"
    FAILED = "failed"
    DUPLICATE = "duplicate"


_REASON_TEXT = {
    Reason.NOT_DICOM: "not a DICOM file",
    Reason.TRUNCATED: "the file is truncated",
    Reason.MISSING_UID: "a mandatory UID is missing or invalid",
    Reason.NO_PIXELS: "the object holds no pixel data",
    Reason.UNDECODABLE: "the pixel data cannot be decoded",
    Reason.WRONG_MODALITY: "not a projection radiograph (CR, DX, or SC that says chest)",
    Reason.WRONG_BODY_PART: "not a radiograph of the chest",
    Reason.LATERAL: "not a frontal view",
    Reason.MULTI_FRAME: "the object holds several frames",
    Reason.NOT_A_PATIENT: "not of a human patient (an animal, a phantom or a quality control image)",
    Reason.ORIENTATION_UNCLEAR: "how the film lies is not clear",
    Reason.IMPLAUSIBLE_PIXELS: "the pixels are implausible for a radiograph",
    Reason.OWN_RESULT: "a result that cxrnode itself made",
    Reason.NOT_AN_IMAGE: "the object is not an image",
    Reason.UNREADABLE_FILE: "the file cannot be read",
    Reason.TOO_LARGE: "larger, or made of more elements, than any radiograph",
    Reason.NESTED_ARCHIVE: "an archive inside an archive",
    Reason.LINK: "a link to another file",
    Reason.DICOMDIR: "a DICOMDIR (its files are analysed, it is not)",
    Reason.DECODER_CRASHED: "the decoder crashed on this file",
    Reason.INFERENCE_FAILED: "the engine failed on this image",
    Reason.RESULT_INVALID: "the result object failed the node's own checks",
    Reason.GAVE_UP: "the analysis was begun several times and never came to its end",
    Reason.UNEXPECTED_ERROR: "stopped by an error that the node does not know",
    Reason.DUPLICATE: "the same instance with the same pixels, study and patient was seen before",
    Reason.UID_CONFLICT: (
        "analysed, but another file with this SOP Instance UID has other pixel data, or another study or patient"
    ),
    Reason.SEVERAL_PATIENTS: "analysed, but other images of this study carry another patient",
}
# a chest radiograph that should have had its result, or a file that may be one
_FAILURES = {
    Reason.TRUNCATED, Reason.UNDECODABLE, Reason.UNREADABLE_FILE, Reason.DECODER_CRASHED,
    Reason.INFERENCE_FAILED, Reason.RESULT_INVALID, Reason.MISSING_UID, Reason.GAVE_UP,
    Reason.UNEXPECTED_ERROR, Reason.TOO_LARGE, Reason.NESTED_ARCHIVE,
}  # fmt: skip
# no study to report to, or nothing that a radiologist would look for in the study
_UNREPORTED = {
    Reason.NOT_DICOM, Reason.MISSING_UID, Reason.OWN_RESULT, Reason.NOT_AN_IMAGE,
    Reason.NESTED_ARCHIVE, Reason.LINK, Reason.DICOMDIR, Reason.DUPLICATE,
}  # fmt: skip
# flags on an image that was analysed all the same
NOTES = frozenset({Reason.UID_CONFLICT, Reason.SEVERAL_PATIENTS})


class JobState(StrEnum):
    """Where an image stands; states only move forward, unless an operator has it analysed again."""

    RECEIVED = "received"
    CLAIMED = "claimed"  # by an analyse process, until its lease ends
    ANALYSED = "analysed"  # or known not to be: the outcome says it; its study waits for its report
    REPORTED = "reported"


class Kind(StrEnum):
    """Kinds of result object."""

    SR = "sr"
    CAPTURE = "capture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why an image is not analysed; `detail` may add numbers and DICOM keywords, never patient data."""

    reason: Reason
    detail: str = ""

    @property
    def text(self) -> str:
        return f"{self.reason.text}: {self.detail}" if self.detail else self.reason.text


Reference = tuple[str, str]  # SOP Class UID, SOP Instance UID
Source = tuple[str, str | None]  # SOP Instance UID, pixel digest: what identifies an image that a result is about


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHeader:
    """What a sound header says of an instance: who it is, and what the results need of it."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    kept: bytes  # see cxrnode.dicom.header
    patient_id: str = ""
    accession_number: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    """A file that was seen: with what its header says, or with why it is no candidate."""

    path: str
    location: dict[str, Any]
    header: InstanceHeader | None = None
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """A decoded radiograph, on its way to the engine and the capture."""

    pixels: FloatArray  # [H, W] of the bundle's input, 0..1, dense bone white
    preview: ByteArray  # [h, w] for the capture: the source's aspect ratio, long side <= 1024, 0 = black
    rows: int  # of the source
    columns: int
    photometric_interpretation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one model said of one image."""

    probabilities: tuple[float, ...]  # one a label of the bundle, rounded to 6 decimals
    class_index: int
    cam_max: float  # largest value of the raw Grad-CAM: the scale that the capture states
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One source image and what the node says of it: analysed (prediction) or not (rejection), never both."""

    source: Dataset  # header without pixel data: what `dicom.header.report_header` keeps
    pixel_digest: str  # sha256 of the encoded PixelData (of the file where there is none), hex
    prediction: Prediction | None = None
    rejection: Rejection | None = None
    capture: ResultObject | None = None  # of an analysed image, once it is made


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image as the store holds it: a worker parses the header, not the process that owns the queue."""

    kept_header: bytes
    pixel_digest: str
    prediction: Prediction | None = None
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """A result object that was validated and written."""

    kind: Kind
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    path: Path
    sha256: str
    model: str = ""  # digest of the bundle; not known of one that was read back
    software: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A claimed study: what its report speaks of, in the order of arrival."""

    study_instance_uid: str
    job_ids: tuple[int, ...]  # of the images that wait for this report; another one may come while it is made
    images: tuple[StoredImage, ...]
    last_received_at: float  # seconds since 1970, UTC
    stat: bool
    earlier: tuple[ResultObject, ...]  # its SRs so far, oldest first
    image_ids: tuple[int, ...] = ()  # the images' jobs
    sources: tuple[Source, ...] = ()  # of the images
    captures: tuple[ResultObject, ...] = ()  # of any of them, by any model
    first_received_at: float | None = None  # None: taken in by an older cxrnode

    @property
    def received(self) -> datetime:
        return datetime.fromtimestamp(self.last_received_at).astimezone()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one patient of a study gets: an SR, or the reason why it is held back."""

    images: tuple[int, ...]  # places in the study's images
    sr: ResultObject | None = None
    predecessor_uid: str | None = None  # the SR that this one takes the place of
    held_back: Rejection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who sent an instance: as the association said it (AE titles) and as the socket saw it (host)."""

    calling_aet: str
    called_aet: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedInstance:
    """An instance that lies safe in the spool; its row makes it received. Of the patient, what the ledger holds."""

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    kept: bytes  # of the header, see cxrnode.dicom.header
    peer: Peer
    path: Path  # relative to the data folder
    sha256: str  # of the encoded data set, as it came
    size_bytes: int
    received_at: float  # seconds since 1970, UTC
    stat: bool = False  # goes before what is routine
    patient_id: str = ""
    accession_number: str = ""


class Receipt(StrEnum):
    """What the store says of a received instance."""

    NEW = "new"
    DUPLICATE = "duplicate"  # same UID, same bytes: received before, nothing was added
    CONFLICT = "conflict"  # same UID, other bytes: kept beside the first, flagged


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A storage SCP that takes results."""

    ae_title: str
    host: str
    port: int
    name: str = ""  # in the configuration
    storage_commitment: bool = False
    # what is in force when a connection is opened
    tls: Callable[[], ssl.SSLContext] | None = field(default=None, repr=False, compare=False)

    @property
    def tls_args(self) -> tuple[ssl.SSLContext, str] | None:
        """As pynetdicom wants it."""
        return (self.tls(), self.host) if self.tls else None

    @property
    def key(self) -> str:
        """Its name in the store."""
        return self.name or str(self)

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One record of the ledger; hash = sha256 over its canonical JSON, which holds the hash of the record before it."""

    seq: int
    at: datetime
    kind: str
    actor: str
    study_instance_uid: str | None
    detail: dict[str, object]
    prev_hash: str
    hash: str
    # what it is found by, where it says so
    sop_instance_uid: str | None = None
    ae_title: str | None = None  # the peer's
    patient_id: str | None = None
    accession_number: str | None = None
    outcome: str | None = None
