"""The exception tree. Every error says what is wrong and how to mend it.

CxrnodeError                 exit code 2: usage, configuration
├── ArchiveError             an archive that cannot be opened at all
├── ConfigError              the configuration, or a file that it names, is wrong
├── ResultError              a result object that the node's own checker refused (never leaves the node)
├── StoreError               the database or the output folder is locked, foreign or broken
│   └── StoreAwayError       the database does not answer just now: whatever it was asked for may be asked again
│       └── DataDirAwayError the data folder is not there just now: nothing can be said of the files in it
└── StorageFullError         the disk is full; the work done so far is kept and can be resumed

Rejected stands beside the tree: one item is not analysed, which is an outcome and no fault of the run. What an item
raises that nobody expects becomes one too, by `unexpected`.
"""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

from cxrnode.types import Reason, Rejection

# Of a share or a device that is not there just now: they say nothing of the one file that was asked for. (EIO does: a
# sector that cannot be read.)
AWAY = frozenset(
    {
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ENODEV,
        errno.ENXIO,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ESHUTDOWN,
        errno.EREMOTEIO,
        errno.ENOLINK,
        errno.ECOMM,
    }
)


class CxrnodeError(Exception):
    """Base: the message is shown to the user as it is, each of several on a line of its own."""

    exit_code = 2

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


class ArchiveError(CxrnodeError):
    """An archive that was named on the command line cannot be opened."""


class ConfigError(CxrnodeError):
    """The configuration, or something it names (TLS material, an address to listen on), cannot be used."""


class ResultError(CxrnodeError):
    """A result object failed the node's own checks."""

    exit_code = 1


class StoreError(CxrnodeError):
    """The database or the output folder cannot be used."""


class StoreAwayError(StoreError):
    """The database does not answer: stopped, locked by another, out of connections. The question is not to blame."""

    exit_code = 1


class DataDirAwayError(StoreAwayError):
    """The data folder is not mounted, or another one stands in its place. No file that is missing there is lost."""


class StorageFullError(CxrnodeError):
    """No space left (ENOSPC, EDQUOT, EFBIG) or not writable (EROFS, EACCES): resumable once mended."""

    exit_code = 1


class Rejected(Exception):  # noqa: N818 (an outcome, not an error)
    """This item is not analysed; the reason goes into the results, the study's SR and the ledger."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.rejection = Rejection(reason=reason, detail=detail)
        super().__init__(self.rejection.text)


class Damaged(Exception):  # noqa: N818 (an outcome, not an error)
    """A container that cannot be read from here on. The words say why, without a value of the content."""


def unexpected(error: BaseException) -> Rejection:
    """An exception that nobody expects, as the outcome of the one item that raised it.

    Its kind and its place are told; its words are not, for they may quote a patient.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Rejection(reason=Reason.UNEXPECTED_ERROR, detail=f"{type(error).__name__}{where}")
