"""The faults that `make mutants` plants, and those that it leaves out because no test could state them."""

from pathlib import Path

import pytest

from tools.mutants.faults import faults
from tools.mutants.trial import Coverage

PATH = Path("kproxy/a.py")


def planted(source: str) -> set[tuple[str, str]]:
    """What is replaced by what."""
    return {(fault.before, fault.after) for fault in faults(PATH, source.encode())}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = a < b", {("a < b", "(a <= b)"), ("a < b", "(a >= b)")}),
        ("x = a == b", {("a == b", "(a != b)")}),
        ("x = a and b", {("a and b", "(a or b)")}),
        ("x = not a", {("not a", "(a)")}),
        ("x = a + b", {("a + b", "(a - b)")}),
        ("x = 3", {("3", "4"), ("3", "2")}),
        ("x = True", {("True", "False")}),
        ("if a:\n    b()", {("a", "(not a)")}),
        ("def f():\n    return a", {("a", "None")}),
    ],
)
def test_each_kind_of_fault_is_planted(source: str, found: set[tuple[str, str]]) -> None:
    assert planted(source) == found


@pytest.mark.parametrize(
    "source",
    [
        "x = 17",
        "x = 1 << 16",
        "x: Literal[1]",
        "log.info('a', b=not c)",
        "x = f'{a + b}'",
        "def __repr__(self):\n    return a < b",
        "class A(Struct, frozen=True, gc=False, kw_only=True): pass",
        "t = Thread(daemon=True)",
        "@dataclass(frozen=True)\nclass A: pass",
        "x = 'a' + 'b'",
    ],
)
def test_what_changes_no_behaviour_is_left_out(source: str) -> None:
    assert planted(source) == set()


@pytest.mark.parametrize(
    "name", ["time.monotonic()", "now", "deadline", "self._retry_at", "self._clock()", "self._now"]
)
def test_a_time_is_not_moved_by_a_tick(name: str) -> None:
    assert planted(f"x = {name} >= a") == {(f"{name} >= a", f"({name} < a)")}
    assert planted(f"x = {name} == a") == {(f"{name} == a", f"({name} != a)")}


def test_a_fault_keeps_every_line_where_it_was() -> None:
    source = b"x = (\n    a\n    and b\n)\ny = 20\n"
    (fault,) = faults(PATH, source)
    wrong = fault.plant(source)
    assert wrong.count(b"\n") == source.count(b"\n")
    values: dict[str, object] = {"a": 1, "b": 0}
    exec(compile(wrong, "wrong", "exec"), values)  # noqa: S102 - the text above
    assert (values["x"], values["y"]) == (1, 20)


def test_a_fault_is_tried_with_the_quick_tests_of_its_room_first() -> None:
    (fault,) = faults(PATH, b"x = a and b\n")
    seconds = {
        "tests/b/test_1.py::slow": 30.0,
        "tests/b/test_1.py::quick": 1.0,
        "tests/a/test_2.py::own": 5.0,
    }
    lines = {"kproxy/a.py": {1: frozenset(seconds), 2: frozenset({"tests/c/test_3.py::other"})}}
    assert Coverage(lines, seconds, ()).tests(fault, "a") == [
        "tests/a/test_2.py::own",
        "tests/b/test_1.py::quick",
        "tests/b/test_1.py::slow",
    ]


def test_a_line_of_an_import_is_tried_with_the_tests_of_its_module_and_room() -> None:
    (fault,) = faults(PATH, b"x = a and b\n")
    seconds = {
        "tests/b/test_1.py::module": 1.0,
        "tests/a/test_2.py::own": 2.0,
        "tests/c/test_3.py::other": 3.0,
    }
    lines = {"kproxy/a.py": {1: frozenset[str](), 9: frozenset({"tests/b/test_1.py::module"})}}
    assert Coverage(lines, seconds, ()).tests(fault, "a") == [
        "tests/a/test_2.py::own",
        "tests/b/test_1.py::module",
    ]
