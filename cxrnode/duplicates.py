"""When is an image a duplicate? When all that matters is the same: instance, pixels, study, patient, what came of it.

The same image under another study or patient has a report of its own. A copy of an image that was rejected, with a
header that was put right since, is analysed.
"""

from __future__ import annotations

from collections.abc import Sequence

from cxrnode.dicom.header import header_from_bytes
from cxrnode.report.patients import patient_of
from cxrnode.store.queue import Job, SeenImage
from cxrnode.types import Reason, Rejection
from cxrnode.workers import Decoded


def compare_with_seen(
    job: Job, decoded: Decoded, seen: Sequence[SeenImage]
) -> tuple[Rejection | None, Rejection | None]:
    """(rejection, note) of an image that was decoded: a duplicate, what the decoder said, or a flag on a shared UID.

    seen: the other images with its SOP Instance UID that were let in before, the oldest first.
    """
    same = [other for other in seen if _same(job, decoded, other)]
    why = decoded.rejection.reason if decoded.rejection else None
    for other in same:
        if other.rejected in (None, why):
            return Rejection(reason=Reason.DUPLICATE, detail=f"of {other.path}"), None
    conflicts = sorted(other.path for other in seen if other not in same)
    if decoded.rejection or not conflicts:
        return decoded.rejection, None
    return None, Rejection(reason=Reason.UID_CONFLICT, detail=f"with {', '.join(conflicts)}")


def _same(job: Job, decoded: Decoded, other: SeenImage) -> bool:
    if (decoded.pixel_digest, job.study_instance_uid) != (other.pixel_digest, other.study_instance_uid):
        return False
    return _patient(job.header) == _patient(other.header)


def _patient(kept_header: bytes) -> tuple[bytes, ...]:
    return patient_of(header_from_bytes(kept_header))
