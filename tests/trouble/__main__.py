"""make faults: trouble around a node under load, one kind after the other, and what came of it as a table.

    python -m tests.trouble                    # all but the soak
    python -m tests.trouble full no_inodes     # these
    python -m tests.trouble soak               # two hours, or CXRNODE_SOAK_S seconds

Each sends films to a real node with a PACS that commits, makes its trouble, waits until the node is ready and done, and
compares what was acknowledged with rows, results, files and the ledger. Exit code 1 where anything is not sound. What
this machine cannot do is named and left out. Nothing else should run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from tests.trouble import clock, database, disk, peers, processes
from tests.trouble.account import HEAD

SCENES = {
    f.__name__: f
    for f in (*database.SCENES, *disk.SCENES, *clock.SCENES, *peers.SCENES, *processes.SCENES)
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--keep", type=Path, help="a folder for the nodes' data and logs, which stay")
    a = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    sound = [_played(name, a.keep) for name in a.scenes or [name for name in SCENES if name != "soak"]]
    return 0 if all(sound) else 1


def _played(name: str, keep: Path | None) -> bool:
    with tempfile.TemporaryDirectory(prefix="cxrnode-trouble-") as temporary:
        folder = (keep or Path(temporary)) / name
        folder.mkdir(parents=True)
        try:
            found = SCENES[name](folder)
        except pytest.skip.Exception as e:  # this machine cannot make that trouble
            print(f"| {name} | not played: {e} |", flush=True)
            return True
        except Exception:  # noqa: BLE001 (the next one is played all the same)
            traceback.print_exc()
            print(f"| {name} | broke off, see above |", flush=True)
            return False
    print(f"| {' | '.join(found.cells)} |", flush=True)
    return not found.wrong


if __name__ == "__main__":
    sys.exit(main())
