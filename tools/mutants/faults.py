"""The faults that can be planted in a module: each replaces one expression by a wrong one.

The kinds are those that a programmer makes and a reviewer overlooks: a comparison flipped or moved by one, a
condition negated, `and` and `or` exchanged, a small number off by one, a flag inverted, a returned value
dropped. Some code stays as it is, because a fault there changes no behaviour that a test could state:
annotations, docstrings and log calls; numbers above SMALL and sizes in kilobytes, which are limits; whether a
time is reached a clock's tick earlier; how a class is stored (STORED); whether the end of the process waits
for a thread that ends by itself.
"""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SMALL: Final = 16
"""The largest number that is changed by one; a limit of 1,000 or 1,001 is the same to users."""

STORED: Final = frozenset({"frozen", "gc", "kw_only", "slots", "weakref"})
"""Keywords of classes that say how objects are stored and called, which mypy checks; not what they hold."""

_KILOBYTE: Final = 10
"""The power of two from which `1 << number` is a size."""

_CLOCK: Final = re.compile(r"(\b|_)(now|monotonic|clock|time)\b|deadline|_at\b|_by\b|until")
"""The names of readings of a clock in this product."""

_LOG_METHODS: Final = frozenset({"debug", "info", "warning", "error", "exception"})

_FLIPPED: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_EXCHANGED: Final[dict[type[ast.operator], type[ast.operator]]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong expression; `start` and `end` are byte offsets of the right one in the file."""

    path: Path
    line: int
    start: int
    end: int
    before: str
    after: str

    def plant(self, source: bytes) -> bytes:
        """Return the module's source with the fault in it, all lines where they were."""
        lost = source[self.start : self.end].count(b"\n")
        return source[: self.start] + self.after.encode() + b"\\\n" * lost + source[self.end :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before}  ->  {self.after}"


def faults(path: Path, source: bytes) -> list[Fault]:
    """Return all faults that can be planted in a module, in the order of its text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, wrong in _wrong(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        fault = Fault(path, node.lineno, start, end, ast.unparse(node), _text(wrong))
        if _parses(fault.plant(source)):
            found.append(fault)
    return sorted(found, key=lambda fault: (fault.start, fault.end, fault.after))


def _wrong(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield every expression that can be replaced, with its replacement."""
    for node in _code(tree):
        match node:
            case ast.Compare(ops=[operator, *_]):
                for flipped in _FLIPPED[type(operator)][_skips_boundary(node) :]:
                    wrong = copy.copy(node)
                    wrong.ops = [flipped(), *node.ops[1:]]
                    yield node, wrong
            case ast.BoolOp(op=operator, values=values):
                exchanged = ast.Or() if isinstance(operator, ast.And) else ast.And()
                yield node, ast.BoolOp(exchanged, values)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield node, operand
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as operator, right=right):
                if not _is_text(left) and not _is_text(right):
                    yield node, ast.BinOp(left, _EXCHANGED[type(operator)](), right)
            case ast.Constant(value=bool() as value):
                yield node, ast.Constant(not value)
            case ast.Constant(value=int() as value) if value <= SMALL:
                yield node, ast.Constant(value + 1)
                if value > 0:
                    yield node, ast.Constant(value - 1)
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield value, ast.Constant(None)
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                yield from _negated(test)
            case ast.comprehension(ifs=tests):
                for test in tests:
                    yield from _negated(test)


def _skips_boundary(node: ast.Compare) -> int:
    """Return how many replacements to skip: 1 where the first only moves a time by a tick of a clock."""
    ordered = isinstance(node.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    return int(ordered and _CLOCK.search(ast.unparse(node)) is not None)


def _negated(test: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Negate a condition, unless that is the same as a flipped comparison or a dropped `not`."""
    if not isinstance(test, ast.Compare | ast.Constant | ast.UnaryOp):
        yield test, ast.UnaryOp(ast.Not(), test)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs and matters: no annotations, type aliases, f-strings, log calls, __repr__."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "type_comment", "type_params", "decorator_list"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_ignored(child):
                yield from _code(child)


def _is_ignored(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Subscript(value=ast.Name(id="Final" | "Literal")):
            return True
        case ast.Call(func=ast.Attribute(attr=attribute)):
            return attribute in _LOG_METHODS
        case ast.keyword(arg=name) if name in STORED or name == "daemon":
            return True
        case ast.BinOp(op=ast.LShift(), right=ast.Constant(value=int() as bits)):
            return bits >= _KILOBYTE
        case ast.FunctionDef(name="__repr__" | "__str__") | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _text(node: ast.expr) -> str:
    text = ast.unparse(ast.fix_missing_locations(node))
    return text if isinstance(node, ast.Constant) else f"({text})"


def _parses(source: bytes) -> bool:
    try:
        compile(source, "fault", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True
