"""The run that a folder of results holds: whether this one goes on with it, known before anything there changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrnode.errors import StoreError
from cxrnode.results import JSON_NAME
from cxrnode.store.database import LEDGER_NAME
from cxrnode.store.peek import is_foreign, peek_setting
from engines.bundle import MANIFEST, Bundle, sha256_file, shipped_bundles

RUN = "run"  # the setting that says what the run is of


def run_of(bundle: Bundle, archives: Sequence[Path]) -> dict[str, Any]:
    """What a run is of, for the setting."""
    return {
        "bundle": bundle.digest,
        "archives": [str(a.resolve()) for a in archives],
        "bundle_name": bundle.name,
        "bundle_version": bundle.manifest.version,
    }


def check_folder(out: Path, wanted: dict[str, Any]) -> None:
    """Raises StoreError where `out`, of whatever cxrnode, holds another run. Nothing there is written or opened to."""
    if is_foreign(out / LEDGER_NAME):
        raise StoreError(f"{out / LEDGER_NAME} is no database of cxrnode: choose a new or empty folder for --out")
    check_same(out, peek_setting(out / LEDGER_NAME, RUN), wanted)


def check_same(out: Path, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Raises StoreError where the run that `out` holds is another one than `wanted`."""
    if not found:
        return
    differing, mend = [], []
    if found["bundle"] != wanted["bundle"]:
        made_with, option = _bundle(out, found)
        differing.append(f"was made with the model bundle {made_with}, and this is {_named(wanted)}")
        mend.append(option)
    if found["archives"] != wanted["archives"]:
        differing.append(f"is of {', '.join(found['archives'])}, and not of {', '.join(wanted['archives'])}")
        mend.append("the same archives")
    if differing:
        raise StoreError(
            f"{out} holds the results of another run, which {' and '.join(differing)}. To go on with it, give "
            f"{' and '.join(mend)}; for a run of its own, give another --out; or begin anew with --restart, which "
            "deletes the results there"
        )


def _bundle(out: Path, found: dict[str, Any]) -> tuple[str, str]:
    """The bundle that a run was made with, and the option that names it."""
    known = found if "bundle_name" in found else found | _told(out, found["bundle"])
    shipped = next((f for f in shipped_bundles() if sha256_file(f / MANIFEST) == found["bundle"]), None)
    if shipped:
        return _named(known | {"bundle_name": shipped.name}), f"--bundle {shipped.name}"
    return _named(known), "--bundle with the folder of that bundle"


def _told(out: Path, digest: str) -> dict[str, str]:
    """What run.json says of the bundle, for older runs do not say it elsewhere; nothing where it is of another one."""
    try:
        told = json.loads((out / JSON_NAME).read_text(encoding="utf-8"))["bundle"]
        if told["digest"] == digest:
            return {"bundle_name": str(told["name"]), "bundle_version": str(told["version"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _named(run: dict[str, Any]) -> str:
    parts = (run.get("bundle_name", ""), run.get("bundle_version", ""), f"(digest {run['bundle'][:12]})")
    return " ".join(part for part in parts if part)
