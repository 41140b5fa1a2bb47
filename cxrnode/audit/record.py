"""Who does what, and with which model: what several commands write into the ledger in the same way."""

from __future__ import annotations

import os
import pwd

from sqlalchemy import Connection

from cxrnode.store import ledger
from engines.bundle import MODEL, Bundle

MODEL_LOADED = "model_loaded"


def os_user() -> str:
    """The user of this process as the system knows it, whatever the environment says."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name[:32]
    except KeyError:  # a container has no account for it
        return f"uid {uid}"


def operator() -> str:
    """The actor of what is done by hand."""
    return f"operator:{os_user()}"


def record_model(c: Connection, bundle: Bundle, *, actor: str) -> None:
    """Record what a bundle's digest stands for: results name the digest, and `audit explain` finds this."""
    ledger.append(
        c, MODEL_LOADED, actor=actor, model=bundle.digest, name=bundle.name, version=bundle.manifest.version,
        weights=bundle.manifest.files.get(MODEL),
        labels=[{"name": label.name, "present_at": label.present_at, "absent_below": label.absent_below}
                for label in bundle.labels],
    )  # fmt: skip
