"""Problems of objects are logged once, and once more when they are gone."""

from structlog.testing import capture_logs

from kproxy.state.problems import Problem
from kproxy.telemetry.problem_log import LINES, ProblemLog

IP = Problem("Service ns/a", "spec.externalIPs[0]", '"x"', "no address")
PORT = Problem("Service ns/a", "spec.ports[0]", "0", "out of range")


def told(*found: tuple[Problem, ...]) -> list[list[tuple[str, object]]]:
    """What is logged of the problems that a service has at each update."""
    log = ProblemLog()
    lines = []
    for problems in found:
        with capture_logs() as logs:
            log.update({"ns/a": problems})
        lines.append([(each["event"], each.get("field") or each.get("service")) for each in logs])
    return lines


def test_a_problem_is_logged_when_it_is_new_and_when_it_is_gone() -> None:
    ip, port = ("object_problem", IP.field), ("object_problem", PORT.field)
    valid = ("object_valid_again", "ns/a")
    assert told((), (IP,), (IP,), (IP, PORT), (PORT,), (), (), (IP,)) == [
        [],
        [ip],
        [],
        [port],
        [],
        [valid],
        [],
        [ip],
    ]


def test_problems_up_to_the_limit_have_a_line_each() -> None:
    found = tuple(Problem("Service ns/a", f"spec.externalIPs[{n}]", "", "no address") for n in range(LINES))
    assert [event for event, _ in told(found)[0]] == ["object_problem"] * LINES
