"""Runs tests in temporary copies of the repository: all of them once, then some for each fault.

The first run records which test executes which line. It is kept in `.cache/mutants` until the product or the
tests change. A fault is then tried with the tests that execute its line: those of its own directory first,
the quickest first. Lines that run at import, or in a process that a test starts, get the tests of the whole
module and of the directory. The work tree is never changed.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import coverage

from tools.mutants import plugin
from tools.mutants.faults import Fault

ROOTLESS: Final = "not root and not ipvs"
BUDGET: Final = 40.0
"""Seconds of tests per fault, as the first run measured them; the slowest of a central line are left out."""

PATIENCE: Final = 90.0
"""Seconds added to three times the measured time before a run counts as endless."""

_COPIED: Final = ("kproxy", "lab", "tests", "tools", "benchmarks", "manifests", "docs", ".github", ".ci")
_LEFT_OUT: Final = shutil.ignore_patterns(".hypothesis", ".mypy_cache", "bench-results")
_NO_TESTS: Final = 5
"""pytest's exit status where no test was selected (pytest.ExitCode.NO_TESTS_COLLECTED)."""


class Verdict(Enum):
    """What the tests made of a fault."""

    KILLED = "killed"
    ENDLESS = "killed (endless)"
    SURVIVED = "survived"
    UNTESTED = "no test executes it"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which tests execute which line, and the seconds that each test takes."""

    lines: Mapping[str, Mapping[int, frozenset[str]]]
    seconds: Mapping[str, float]
    not_passed: Sequence[str]

    def tests(self, fault: Fault, room: str) -> list[str]:
        """Return the tests for a fault, in the order in which they run."""
        lines = self.lines.get(str(fault.path), {})
        chosen = lines.get(fault.line, frozenset()) & self.seconds.keys()
        own = f"tests/{room.partition('/')[0]}/"
        if not chosen:
            chosen = frozenset().union(*lines.values()) & self.seconds.keys()
            chosen |= {test for test in self.seconds if test.startswith(own)}
        ordered = sorted(chosen, key=lambda test: (not test.startswith(own), self.seconds[test], test))
        kept: list[str] = []
        total = 0.0
        for test in ordered:
            total += self.seconds[test]
            if kept and total > BUDGET:
                break
            kept.append(test)
        return kept


class Copy:
    """A copy of the repository, for one run of tests at a time."""

    def __init__(self, root: Path, place: Path) -> None:
        self.root = place
        place.mkdir()
        for name in _COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, place / name, ignore=_LEFT_OUT, symlinks=True)
        for file in root.iterdir():
            if file.is_file():
                shutil.copy2(file, place / file.name)
        (place / ".cache").mkdir()
        for name in (".venv", ".cache/promtool"):
            if (root / name).exists():
                (place / name).symlink_to(root / name)

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], timeout: float | None = None
    ) -> int | None:
        """Run pytest; return its exit status, or None if it did not end in time. It prints into `output`."""
        variables = {
            **os.environ,
            **environment,
            "PYTHONPATH": f"{self.root}:{self.root / 'lab'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        argv = [sys.executable, "-m", "pytest", "-p", plugin.__name__, "--ipvs-kernels", "0", *arguments]
        with (
            self.output.open("wb") as output,
            subprocess.Popen(
                argv,
                cwd=self.root,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    @property
    def output(self) -> Path:
        """The output of the last run."""
        return self.root / "output"

    def judge(self, fault: Fault, tests: Sequence[str], seconds: float) -> Verdict:
        """Plant a fault, run tests until one fails, take the fault out again."""
        if not tests:
            return Verdict.UNTESTED
        listed = self.root / "chosen-tests"
        listed.write_text("".join(f"{test}\n" for test in tests), encoding="utf-8")
        files = sorted({test.partition("::")[0] for test in tests})
        module = self.root / fault.path
        before, times = module.read_bytes(), module.stat()
        module.write_bytes(fault.plant(before))
        # Compiled code of the right module is found by time and size: the wrong one must differ.
        os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns + 10**10))
        try:
            status = self.run(["-x", "-n", "0", *files], {plugin.TESTS: str(listed)}, 3 * seconds + PATIENCE)
        finally:
            module.write_bytes(before)
            os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns))
        if status is None:
            return Verdict.ENDLESS
        return {0: Verdict.SURVIVED, _NO_TESTS: Verdict.UNTESTED}.get(status, Verdict.KILLED)


def record(
    copy: Copy, cache: Path, paths: Sequence[str], root_paths: Sequence[str], workers: int
) -> Coverage:
    """Return the coverage of rootless tests under `paths` and of root tests under `root_paths`.

    Raises RuntimeError where pytest cannot run them.
    """
    place = cache / _digest(copy.root, (*paths, "+", *root_paths))
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        for name, marker, where in (("rootless", ROOTLESS, paths), ("root", "root and not ipvs", root_paths)):
            if where:
                (place / name).mkdir(parents=True)
                arguments = ["-n", str(workers), "--dist", "loadgroup", "-m", marker, *where]
                status = copy.run(arguments, {plugin.RECORD: str(place / name)})
                if status not in {0, 1, _NO_TESTS}:
                    raise RuntimeError(
                        f"pytest ended with {status}:\n{copy.output.read_text('utf-8')[-4000:]}"
                    )
        (place / "complete").touch()
    return _read(place)


def _read(place: Path) -> Coverage:
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    seconds: dict[str, float] = {}
    not_passed: list[str] = []
    for tests in sorted(place.glob("*/tests.json")):
        outcome = json.loads(tests.read_text(encoding="utf-8"))
        seconds |= outcome["passed"]
        not_passed += outcome["not passed"]
        for file in tests.parent.glob(".coverage*"):
            data = coverage.CoverageData(str(file))
            data.read()
            for measured in data.measured_files():
                relative = measured[measured.rindex("/kproxy/") + 1 :]
                for line, contexts in data.contexts_by_lineno(measured).items():
                    lines[relative][line].update(filter(None, contexts))
    frozen = {path: {line: frozenset(tests) for line, tests in each.items()} for path, each in lines.items()}
    return Coverage(frozen, seconds, not_passed)


def _digest(root: Path, words: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(words).encode())
    for directory in ("kproxy", "lab", "tests", "tools/mutants"):
        for file in sorted((root / directory).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
