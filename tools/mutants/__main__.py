"""`make mutants`: plant a seeded sample of faults in each room and print what the tests missed.

    make mutants                              40 faults in each room, a random seed, which is printed
    make mutants ROOM=plan N=40 SEED=7        one room, and the same faults again
    make mutants ROOM="state sources" TESTS="tests/state tests/sources"   with these tests only
    make mutants ROOM=cli ROOTLESS=1          without the tests that need root, which take minutes

Exit status 1 if the tests kill less than MARK percent of the faults of a room. As root, rooms whose code is
tested with a kernel are tried with these tests too; without root, their percentage says little, and the
output says so.
"""

import argparse
import os
import queue
import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tools.mutants.faults import Fault, faults
from tools.mutants.trial import Copy, Coverage, Verdict, record

MARK: Final = 95
"""Percent of the faults of a room that the tests must kill."""

_SURVIVED: Final = {Verdict.SURVIVED, Verdict.UNTESTED}
_SPLIT: Final = "backends"
"""The directory whose subdirectories are rooms."""

_WITH_ROOT: Final = {
    "agent": ("tests/agent", "tests/cli"),
    "cli": ("tests/cli",),
    "inspect": ("tests/cli", "tests/inspect"),
    "kernel": ("tests/kernel",),
    "modes": ("tests/cli", "tests/modes"),
    "node": ("tests/cli", "tests/node"),
}
"""Rooms whose code needs a kernel or a process of its own, and the tests that have one."""


def rooms(root: Path) -> list[str]:
    """Return the rooms of the product, as directories under kproxy/."""
    found = []
    for directory in sorted(path for path in (root / "kproxy").iterdir() if (path / "__init__.py").exists()):
        inner = sorted(directory.iterdir()) if directory.name == _SPLIT else [directory]
        found += [str(each.relative_to(root / "kproxy")) for each in inner if (each / "__init__.py").exists()]
    return found


def _tests(root: Path) -> list[str]:
    """Return the directories and modules under tests/ that have tests."""
    return [
        str(path.relative_to(root))
        for path in sorted((root / "tests").iterdir())
        if path.match("test_*.py") or [*path.rglob("test_*.py")]
    ]


def sample(root: Path, room: str, number: int, seed: int) -> list[Fault]:
    """Return a sample of a room's faults; the same seed, number and text give the same faults."""
    possible = [
        fault
        for path in sorted((root / "kproxy" / room).rglob("*.py"))
        for fault in faults(path.relative_to(root), path.read_bytes())
    ]
    # A random generator that repeats: no secret depends on it.
    chosen = random.Random(f"{seed}:{room}").sample(possible, min(number, len(possible)))  # noqa: S311
    return sorted(chosen, key=lambda fault: (fault.path, fault.start))


def _try(copies: "queue.SimpleQueue[Copy]", fault: Fault, coverage: Coverage, room: str) -> Verdict:
    tests = coverage.tests(fault, room)
    copy = copies.get()
    try:
        return copy.judge(fault, tests, sum(coverage.seconds[test] for test in tests))
    finally:
        copies.put(copy)


def main(arguments: Sequence[str]) -> int:
    """Print the faults that survive and the percentage per room; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants")
    parser.add_argument("--rooms", nargs="*", help="directories under kproxy/ (default: all)")
    parser.add_argument("--number", type=int, default=40, help="faults per room")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tests", nargs="*", help="paths of rootless tests (default: all)")
    parser.add_argument("--rootless", action="store_true", help="run no test that needs root, even as root")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    chosen = options.rooms or rooms(root)
    as_root = os.geteuid() == 0 and not options.rootless
    with_root = sorted({path for room in chosen if as_root for path in _WITH_ROOT.get(room, ())})
    print(f"seed {options.seed}: {options.number} faults in each of {', '.join(chosen)}")
    for room in sorted(set(chosen) & _WITH_ROOT.keys()):
        print(f"{room}: " + ("with root tests" if as_root else "only rootless tests run: understated"))
    low = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        ready = [Copy(root, Path(temporary) / str(number)) for number in range(options.workers)]
        cache = root / ".cache" / "mutants"
        print("recording which test executes which line ...", flush=True)
        coverage = record(ready[0], cache, options.tests or _tests(root), with_root, options.workers)
        skipped = len(coverage.not_passed)
        print(f"{len(coverage.seconds)} tests; {skipped} left out, which skip or fail without a fault")
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in ready:
            copies.put(copy)
        with ThreadPoolExecutor(options.workers) as pool:
            for room in chosen:
                planted = sample(root, room, options.number, options.seed)
                verdicts = pool.map(lambda fault, room=room: _try(copies, fault, coverage, room), planted)
                if _report(room, planted, list(verdicts)) < MARK:
                    low.append(room)
    if low:
        print(f"below {MARK} %: {', '.join(low)}")
    return 1 if low else 0


def _report(room: str, planted: Sequence[Fault], verdicts: Sequence[Verdict]) -> float:
    killed = sum(verdict not in _SURVIVED for verdict in verdicts)
    percent = 100 * killed / len(planted) if planted else 100.0
    print(f"{room}: {killed} of {len(planted)} killed, {percent:.0f} %")
    for fault, verdict in zip(planted, verdicts, strict=True):
        if verdict in _SURVIVED:
            print(f"  {fault}  ({verdict.value})")
    sys.stdout.flush()
    return percent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
