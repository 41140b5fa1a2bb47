"""The exception tree. Every error says what is wrong and how to mend it.

CxrnodeError                 exit code 2: usage, configuration
├── ArchiveError             an archive that cannot be opened at all
├── ResultError              a result object that the node's own checker refused (never leaves the node)
├── StoreError               the database or the output folder is locked, foreign or broken
└── StorageFullError         the disk is full; the work done so far is kept and can be resumed
"""

from __future__ import annotations


class CxrnodeError(Exception):
    """Base: the message is shown to the user as it is."""

    exit_code = 2


class ArchiveError(CxrnodeError):
    """An archive that was named on the command line cannot be opened."""


class ResultError(CxrnodeError):
    """A result object failed the node's own checks."""

    exit_code = 1


class StoreError(CxrnodeError):
    """The database or the output folder cannot be used."""


class StorageFullError(CxrnodeError):
    """No space left (ENOSPC, EDQUOT, EFBIG) or not writable (EROFS, EACCES): resumable once mended."""

    exit_code = 1
