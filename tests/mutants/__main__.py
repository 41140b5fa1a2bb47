"""Mutation run: changes one thing at a time in a copy of the tree, and sees whether a test notices.

python -m tests.mutants                                    a sample of every module, as `make mutants`
python -m tests.mutants cxrnode/store/queue.py --all       every mutant of one module
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.mutants.groups import GROUPS, Group
from tests.mutants.operators import Mutant, mutants

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
WANTED = 0.95
_TIMEOUT_S = 60.0
_QUICK = ["-m", "not slow", "-k", "not postgresql"]


class Runner:
    """A process with a copy of the tree."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self._folder, self._written = folder, 1_000_000_000
        files = subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        for name in filter(None, files.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.tree / name)
        quiet = {"PYTHONPATH": str(self.tree), "OPENBLAS_NUM_THREADS": "1"}
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | quiet
        self._process = subprocess.Popen(
            [sys.executable, "tests/mutants/runner.py"], cwd=self.tree, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def write(self, path: str, text: str) -> None:
        """Each time with another date, so that no older bytecode passes for it."""
        self._written += 1
        (self.tree / path).write_text(text)
        os.utime(self.tree / path, (self._written, self._written))

    def ask(
        self, tests: Sequence[str], *, options: Sequence[str], chosen: Sequence[str] = (), files: Sequence[str] = (),
        timeout: float,
    ) -> Any:  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        temporary = self._folder / "tmp"
        job = {"tests": tests, "options": options, "chosen": chosen, "files": files, "timeout": timeout,
               "basetemp": str(temporary), "log": str(self._folder / "log")}  # fmt: skip
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        shutil.rmtree(temporary, ignore_errors=True)
        return answer

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def runners(number: int) -> Iterator[SimpleQueue[Runner]]:
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        made = [Runner(Path(folder) / str(n)) for n in range(number)]
        free: SimpleQueue[Runner] = SimpleQueue()
        for runner in made:
            free.put(runner)
        try:
            yield free
        finally:
            for runner in made:
                runner.close()


def modules(group: Group, named: Sequence[str]) -> list[str]:
    found = sorted(p.relative_to(ROOT).as_posix() for pattern in group.modules for p in ROOT.glob(pattern))
    return [path for path in found if not named or path in named]


def equivalents() -> set[tuple[str, str, str]]:
    """Mutants that change nothing that can be seen, by file, line as it is, line as it would be."""
    return {(e["file"], e["is"], e["as"]) for e in tomllib.loads(EQUIVALENT.read_text()).get("equivalent", [])}


def stale() -> list[tuple[str, str, str]]:
    """Entries of the list of equivalents that are no mutant (any more)."""
    listed = equivalents()
    for path in {file for file, _, _ in listed}:
        text = (ROOT / path).read_text()
        listed -= {(path, *m.lines(text)) for m in mutants(path, text)}
    return sorted(listed)


def chosen(path: str, most: int, seed: str, lines: tuple[int, int]) -> list[Mutant]:
    text = (ROOT / path).read_text()
    left_out = equivalents()
    found = [
        m for m in mutants(path, text) if lines[0] <= m.line <= lines[1] and (path, *m.lines(text)) not in left_out
    ]
    if 0 < most < len(found):
        found = sorted(random.Random(f"{seed} {path}").sample(found, most), key=lambda m: m.start)
    return found


def reaching(mutant: Mutant, baseline: Any) -> list[str]:
    """The tests that run its lines, the quickest first. Where none does (a line of the module itself, or one that runs
    in another process): all, those first that run any line of its file."""
    lines: dict[str, list[str]] = baseline["lines"].get(mutant.path, {})
    its = range(mutant.lines_run[0], mutant.lines_run[1] + 1)
    direct = {test for n in its for test in lines.get(str(n), [])} - {""}
    near = {test for some in lines.values() for test in some}
    seconds = baseline["seconds"]
    tests = (direct or set(seconds)) - set(baseline["failed"])
    return sorted(tests, key=lambda test: (test not in near, seconds.get(test, 0.0)))


def judge(runner: Runner, group: Group, mutant: Mutant, baseline: Any) -> str:
    """The test that noticed; "" where none did."""
    text = (ROOT / mutant.path).read_text()
    runner.write(mutant.path, mutant.apply(text))
    killer = ""
    try:
        if tests := reaching(mutant, baseline):
            files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
            timeout = _TIMEOUT_S + 3 * sum(baseline["seconds"].get(test, 0.0) for test in tests)
            killer = noticed(runner.ask(files, options=["-x"], chosen=tests, timeout=timeout))
        if not killer and means_postgresql(mutant, text):
            killer = noticed(runner.ask(group.tests, options=["-x", "-k", "postgresql"], timeout=10 * _TIMEOUT_S))
    finally:
        runner.write(mutant.path, text)
    return killer


def means_postgresql(mutant: Mutant, text: str) -> bool:
    """Whether the line means something on PostgreSQL alone."""
    here = mutant.lines(text)[0]
    return "postgresql" in mutant.function or "shared=" in here or "skip_locked" in here


def noticed(answer: Any) -> str:
    if answer["timed_out"]:
        return "(too slow)"
    return next(iter(answer["failed"]), f"(ended with {answer['code']})" if answer["code"] not in {0, 5} else "")


def run_group(
    free: SimpleQueue[Runner], group: Group, named: Sequence[str], args: argparse.Namespace
) -> list[tuple[Mutant, str]]:
    paths = modules(group, named)
    todo = [m for path in paths for m in chosen(path, args.sample, args.seed, args.lines)]
    if not todo:
        return []
    runner = free.get()
    baseline = runner.ask(group.tests, options=_QUICK, files=paths, timeout=3600)
    if not baseline["lines"]:
        raise SystemExit(f"the tests do not run without any mutant:\n{runner.log}")
    for test in baseline["failed"]:
        print(f"left out, it fails without any mutant: {test}", file=sys.stderr)
    free.put(runner)

    def one(mutant: Mutant) -> tuple[Mutant, str]:
        mine = free.get()
        try:
            killer = judge(mine, group, mutant, baseline)
        finally:
            free.put(mine)
        print(f"{mutant.path}:{mutant.line}: {mutant.kind}: {killer or 'SURVIVED'}", file=sys.stderr, flush=True)
        return mutant, killer

    with ThreadPoolExecutor(args.processes) as pool:
        return list(pool.map(one, todo))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"groups ({', '.join(GROUPS)}) or files, all if left out")
    parser.add_argument("--sample", type=int, default=10, help="mutants of each module")
    parser.add_argument("--all", dest="sample", action="store_const", const=0, help="every mutant")
    parser.add_argument("--seed", default="1", help="another seed, another sample")
    parser.add_argument("--lines", type=lambda s: tuple(map(int, s.split("-"))), default=(0, 10**9), help="FIRST-LAST")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    files = [name for name in args.modules if name not in GROUPS]
    wrong = [f for f in files if not any(f in modules(g, []) for g in GROUPS.values())]
    if wrong:
        raise SystemExit(f"no group of tests/mutants/groups.py has {', '.join(wrong)}")
    judged: list[tuple[Mutant, str]] = []
    with runners(args.processes) as free:
        for name, group in GROUPS.items():
            if not args.modules or name in args.modules or set(modules(group, [])) & set(files):
                judged += run_group(free, group, [] if name in args.modules else files, args)
    return report(judged)


def report(judged: list[tuple[Mutant, str]]) -> int:
    survived = [m for m, killer in judged if not killer]
    for m in survived:
        was, now = m.lines((ROOT / m.path).read_text())
        print(f"\n{m.path}:{m.line}: {m.kind}\n- {was}\n+ {now}")
    killed = len(judged) - len(survived)
    print()
    for path in sorted({m.path for m, _ in judged}):
        ours = [killer for m, killer in judged if m.path == path]
        print(f"{path}: {sum(map(bool, ours))} of {len(ours)}")
    print(f"{killed} of {len(judged)} mutants killed ({killed / max(len(judged), 1):.1%}; wanted {WANTED:.0%})")
    return 0 if killed >= WANTED * len(judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
