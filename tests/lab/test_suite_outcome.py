"""What `make test` makes of a session: no failure is lost, whatever a second run says."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.suite.__main__ import SECOND, _pytest, main
from tests.suite.outcome import Outcome, Recorder, read

ROOT = Path(__file__).parents[2]
A, B = "tests/a.py::test[node port]", "tests/b.py::test"


class Sessions:
    """Stands in for pytest: each run leaves the next outcome."""

    def __init__(self, *outcomes: tuple[int, Outcome | None]) -> None:
        self._outcomes = list(outcomes)
        self.arguments: list[list[str]] = []

    def __call__(self, arguments: Sequence[str], path: Path) -> int:
        self.arguments.append(list(arguments))
        status, outcome = self._outcomes.pop(0)
        if outcome is not None:
            recorder = Recorder(path)
            for nodeid in outcome.passed:
                recorder.pytest_runtest_logreport(reported(nodeid, "passed"))
            for nodeid, text in outcome.failed.items():
                recorder.pytest_runtest_logreport(reported(nodeid, "failed", text))
            for each in outcome.lost:
                recorder.lose(each)
            recorder.pytest_sessionfinish()
        return status


def reported(nodeid: str, outcome: str, text: str | None = None) -> pytest.TestReport:
    return pytest.TestReport(nodeid, ("a.py", 1, "a"), {}, outcome, text, "call")  # type: ignore[arg-type]


def outcome(*passed: str, failed: Mapping[str, str] | None = None, lost: Sequence[str] = ()) -> Outcome:
    return Outcome(frozenset(passed), failed or {}, tuple(lost))


def test_all_passed(tmp_path: Path) -> None:
    sessions = Sessions((0, outcome(A, B)))
    assert main(["-n", "2"], sessions, tmp_path) == 0
    assert sessions.arguments == [["-n", "2"]]


def test_what_passes_alone_is_acquitted_named_counted_and_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = Sessions((1, outcome(B, failed={A: "no answer in time"})), (0, outcome(A)))
    assert main([], sessions, tmp_path) == 0
    assert (tmp_path / "failed-tests").read_text() == f"{A}\n"
    assert sessions.arguments[1][-1] == f"@{tmp_path / 'failed-tests'}"
    told = capsys.readouterr().out
    assert "PASSED ONLY THE SECOND TIME: 1" in told
    assert f"  {A}\n" in told
    written = (tmp_path / SECOND.name).read_text()
    assert A in written
    assert "no answer in time" in written
    assert main([], Sessions((0, outcome(A, B))), tmp_path) == 0
    assert not (tmp_path / SECOND.name).exists(), "of an earlier run"


@pytest.mark.parametrize(
    ("status", "second"),
    [
        (1, outcome(B, failed={A: "again"})),
        (0, outcome(B)),
        (5, outcome()),
        (0, outcome(A, B, lost=["a kernel"])),
        (2, outcome(A, B)),
        (0, None),
        (137, None),
    ],
    ids=["fails", "is not run", "none", "a kernel", "interrupted", "no end", "killed"],
)
def test_what_does_not_pass_alone_fails(tmp_path: Path, status: int, second: Outcome | None) -> None:
    first = (1, outcome(failed={A: "one", B: "two"}))
    assert main([], Sessions(first, (status, second)), tmp_path) != 0


@pytest.mark.parametrize(
    ("status", "first"),
    [
        (1, outcome(failed={A: "one"}, lost=["an IPVS kernel failed"])),
        (0, outcome(A, lost=["worker gw0 ended"])),
        (0, outcome(A, failed={B: "one"})),
        (2, outcome(failed={A: "one"})),
        (3, outcome(A)),
        (5, outcome()),
        (1, outcome(A)),
        (0, None),
        (1, outcome(failed={f"{A}{n}": "one" for n in range(21)})),
    ],
    ids=[
        *("a kernel and a test", "a worker", "a status that lies", "interrupted", "an internal error"),
        *("no tests", "a failure of no test", "no end", "too many"),
    ],
)
def test_what_no_second_run_can_mend_fails(tmp_path: Path, status: int, first: Outcome | None) -> None:
    sessions = Sessions((status, first), (0, outcome(A, B)))
    result = main([], sessions, tmp_path)
    assert result != 0
    assert len(sessions.arguments) == 1


def session(tmp_path: Path, *arguments: str, **files: str) -> tuple[int, Outcome]:
    """Run pytest on these files with a Recorder."""
    (tmp_path / "conftest.py").write_text(
        "from pathlib import Path\nfrom tests.suite.outcome import Recorder\n"
        "def pytest_configure(config):\n"
        "    if not hasattr(config, 'workerinput'):\n"
        "        config.pluginmanager.register(Recorder(Path(__file__).with_name('outcome.json')))\n"
    )
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    return done.returncode, read(tmp_path / "outcome.json")


def test_the_outcome_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    outcome = tmp_path / "outcome.json"
    outcome.write_text("of an earlier run", encoding="utf-8")
    status = _pytest(["--collect-only", "-q", "-n0", "--ipvs-kernels=0", "--ignore-glob=tests/*/*"], outcome)
    assert (status, read(outcome)) == (0, Outcome())


def test_failures_and_their_output_are_recorded(tmp_path: Path) -> None:
    status, found = session(
        tmp_path,
        test_a="def test_a():\n    pass\ndef test_b():\n    print('before')\n    assert 1 == 2\n",
    )
    assert (status, found.passed, found.lost) == (1, frozenset({"test_a.py::test_a"}), ())
    assert list(found.failed) == ["test_a.py::test_b"]
    assert "assert 1 == 2" in found.failed["test_a.py::test_b"]
    assert "before" in found.failed["test_a.py::test_b"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_file_that_is_not_collected_is_a_loss(tmp_path: Path, workers: str) -> None:
    status, found = session(
        tmp_path, "-n", workers, test_a="def test_a():\n    pass\n", test_b="import no_such_module\n"
    )
    assert status != 0
    assert any("test_b.py: not collected" in each for each in found.lost)


def test_a_worker_that_ends_is_a_loss(tmp_path: Path) -> None:
    text = "import os\ndef test_a():\n    os._exit(7)\ndef test_b():\n    pass\n"
    status, found = session(tmp_path, "-n", "1", test_a=text)
    assert status != 0
    assert any(each.startswith("worker gw0 ended") for each in found.lost)
