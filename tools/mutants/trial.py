"""Runs tests in temporary copies of the repository: all of them once, then some for each fault.

The first run records which test executes which line, itself or in a kproxy that it starts. The record of a
directory of tests is kept in `.cache/mutants` until its tests, the equipment of tests or the product change.
A fault is then tried with the tests that execute its line: those of its own directory first, the quickest
first. Lines that run at import get the tests of the whole module and of the directory. The work tree is never
changed.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import coverage
import msgspec

from tools.mutants import plugin
from tools.mutants.faults import Fault

ROOTLESS: Final = "not root and not ipvs"
ROOT: Final = "root and not ipvs"
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
            "PYTHONPATH": f"{self.root}:{self.root / 'lab'}:{self.root / 'tools/mutants/site'}",
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
    cache.mkdir(parents=True, exist_ok=True)
    parts = []
    for marker, where in ((ROOTLESS, paths), (ROOT, root_paths)):
        places = {path: cache / f"{_digest(copy.root, marker, path)}.json" for path in where}
        if missing := [path for path, place in places.items() if not place.exists()]:
            measured = _measure(copy, marker, missing, workers)
            for path in missing:
                places[path].write_bytes(msgspec.json.encode(_of(path, measured)))
        parts += [msgspec.json.decode(place.read_bytes(), type=_Measured) for place in places.values()]
    return _together(parts)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What some tests executed: names of tests by line and module; and the tests' seconds and failures."""

    lines: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]
    not_passed: list[str]


def _measure(copy: Copy, marker: str, paths: Sequence[str], workers: int) -> _Measured:
    with tempfile.TemporaryDirectory(prefix="mutants-record-") as temporary:
        place = Path(temporary)
        arguments = ["-n", str(workers), "--dist", "loadgroup", "-m", marker, *paths]
        status = copy.run(arguments, {plugin.RECORD: temporary})
        if status not in {0, 1, _NO_TESTS}:
            raise RuntimeError(f"pytest ended with {status}:\n{copy.output.read_text('utf-8')[-4000:]}")
        outcome = json.loads((place / "tests.json").read_text(encoding="utf-8"))
        lines: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for file in place.glob(".coverage*"):
            data = coverage.CoverageData(str(file))
            data.read()
            for path in data.measured_files():
                module = lines[path[path.rindex("/kproxy/") + 1 :]]
                for line, tests in data.contexts_by_lineno(path).items():
                    module[line] += filter(None, tests)
    return _Measured(lines, outcome["passed"], outcome["not passed"])


def _of(path: str, measured: _Measured) -> _Measured:
    """Return the part of the tests under a path."""

    def under(test: str) -> bool:
        return test.startswith((f"{path}/", f"{path}::"))

    return _Measured(
        {
            module: {line: sorted(set(filter(under, tests))) for line, tests in lines.items()}
            for module, lines in measured.lines.items()
        },
        {test: seconds for test, seconds in measured.seconds.items() if under(test)},
        [test for test in measured.not_passed if under(test)],
    )


def _together(parts: Sequence[_Measured]) -> Coverage:
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for part in parts:
        for path, module in part.lines.items():
            for line, tests in module.items():
                lines[path][line].update(tests)
    return Coverage(
        {path: {line: frozenset(tests) for line, tests in each.items()} for path, each in lines.items()},
        {test: seconds for part in parts for test, seconds in part.seconds.items()},
        [test for part in parts for test in part.not_passed],
    )


def _digest(root: Path, marker: str, path: str) -> str:
    """Hash what the record of these tests depends on: the product, the equipment and the tests themselves."""
    digest = hashlib.sha256(f"{marker}\n{path}\n".encode())
    for directory in ("kproxy", "lab", "tests", "tools/mutants/site"):
        for file in sorted((root / directory).rglob("*")):
            name = str(file.relative_to(root))
            of_others = file.match("test_*.py") and name != path and not name.startswith(f"{path}/")
            if file.is_file() and "__pycache__" not in file.parts and not of_others:
                digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
