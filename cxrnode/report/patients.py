"""Whose image is it: one report never speaks of two patients, whatever study their images came in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydicom import Dataset

from cxrnode.dicom.text import encoded, text_of
from cxrnode.types import ImageResult


def patient_of(source: Dataset) -> tuple[bytes, ...]:
    """Patient ID and its issuer as they came (PS3.3 C.7.1.1); without an ID, name and date of birth stand for it.

    Equal for two images only where nothing but padding differs.
    """
    patient_id, issuer, name, born = (
        encoded(source, keyword).strip(b" \0")
        for keyword in ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    )
    return (patient_id, issuer) if patient_id else (b"", issuer, name, born)


def by_patient(images: Sequence[ImageResult]) -> list[tuple[int, ...]]:
    """The places of each patient's images in `images`, in the order of arrival.

    Of one image that came again with a header put right, the copy that was analysed counts, else the newest.
    """
    places: dict[tuple[bytes, ...], dict[tuple[bytes, str], int]] = {}
    for place, image in enumerate(images):
        mine = places.setdefault(patient_of(image.source), {})
        identity = encoded(image.source, "SOPInstanceUID"), image.pixel_digest
        before = mine.get(identity)
        if before is None or images[before].prediction is None:
            mine[identity] = place
    return [tuple(sorted(p.values())) for p in places.values()]


def differences(sources: Iterable[Dataset]) -> list[str]:
    """What differs between images with one Patient ID, by keyword: they may still be two persons', or two studies'."""
    sources = list(sources)
    found = []
    for keyword in ("PatientName", "PatientBirthDate", "AccessionNumber", "StudyID"):
        texts = (text_of(source, keyword) for source in sources)
        values = {_plain(text) if keyword == "PatientName" else text for text in texts} - {""}
        if len(values) > 1:
            found.append(keyword)
    return found


def _plain(text: str) -> str:
    """Of a name its first group, without empty components at its end."""
    return text.partition("=")[0].rstrip("^ ").upper()
