"""The defects of objects that cannot be used: kept until they are fixed, and each logged once.

An object that is listed or changed again without a defect is valid again, and one that is gone has none.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager

import structlog

from kproxy.state.kinds import Kind
from kproxy.state.problems import Problem
from kproxy.state.wire import WireObject

log = structlog.stdlib.get_logger(__name__)

_NAMELESS = 100
"""The number of defects of objects without a name that are kept per kind; the oldest are dropped."""


class Rejections:
    """The current defects of objects of these kinds. Thread-safe by the owner's lock."""

    def __init__(self, kinds: Iterable[Kind], lock: AbstractContextManager[object]) -> None:
        """`lock` is not held by the caller of any method; nothing is logged while it is held here."""
        self._lock = lock
        self._rejected: dict[tuple[Kind, str], tuple[Problem, ...]] = {}
        # Whether each may belong to the next list.
        self._nameless: dict[Kind, dict[Problem, bool]] = {kind: {} for kind in kinds}
        self._standing: tuple[Problem, ...] = ()

    def listed(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str]) -> None:
        """Note a complete list of a kind. Rejected objects that it does not name are gone."""
        defects = {obj.key: found for obj in objects if (found := kind.problems_of(obj))}
        with self._lock:
            kept = {*unreadable, *defects}
            gone = {key for of, key in self._rejected if of is kind and key not in kept}
            freed = {key: self._rejected.pop((kind, key)) for key in gone}
            self._nameless[kind] = {
                problem: False for problem, is_new in self._nameless[kind].items() if is_new
            }
        if freed:
            listed = {obj.key for obj in objects}
            for key, problems in sorted(freed.items()):
                _log_freed(problems, valid=key in listed)
        for key, problems in defects.items():
            self._put(kind, key, problems)

    def came(self, kind: Kind, obj: WireObject) -> None:
        """Note one added or changed object."""
        defects = kind.problems_of(obj)
        with self._lock:
            freed = None if defects else self._rejected.pop((kind, obj.key), None)
            self._age_nameless(kind)
        if freed is not None:
            _log_freed(freed, valid=True)
        if defects:
            self._put(kind, obj.key, defects)

    def gone(self, kind: Kind, key: str) -> None:
        """Note that one object is gone."""
        with self._lock:
            freed = self._rejected.pop((kind, key), None)
            self._age_nameless(kind)
        if freed is not None:
            _log_freed(freed, valid=False)

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:
        """Report an object that cannot be used, once per defect; None: its key could not be read."""
        if key is not None:
            self._put(kind, key, (problem,))
            return
        with self._lock:
            nameless = self._nameless[kind]
            is_known = problem in nameless or problem in self._standing
            nameless[problem] = True
            if len(nameless) > _NAMELESS:
                del nameless[next(iter(nameless))]
        if not is_known:
            _log_rejected(problem)

    def replace_all(self, problems: Sequence[Problem]) -> None:
        """Replace all defects reported before by the current ones."""
        with self._lock:
            self._rejected.clear()
            for nameless in self._nameless.values():
                nameless.clear()
            self._standing = tuple(problems)

    def current(self) -> list[Problem]:
        """The defects of every object that cannot be used now, sorted."""
        with self._lock:
            nameless = (problem for found in self._nameless.values() for problem in found)
            named = (problem for found in self._rejected.values() for problem in found)
            return sorted({*named, *nameless, *self._standing})

    def _put(self, kind: Kind, key: str, problems: tuple[Problem, ...]) -> None:
        """Replace the known defects of one object by `problems`, and log those that are new."""
        with self._lock:
            known = {*self._rejected.get((kind, key), ()), *self._standing}
            self._rejected[kind, key] = problems
        for problem in problems:
            if problem not in known:
                _log_rejected(problem)

    def _age_nameless(self, kind: Kind) -> None:
        """Note an event: nameless defects reported before it do not belong to the next list."""
        nameless = self._nameless[kind]
        if nameless:
            self._nameless[kind] = dict.fromkeys(nameless, False)


def _log_rejected(problem: Problem) -> None:
    log.error(
        "object_rejected",
        object=problem.object,
        field=problem.field,
        value=problem.value,
        reason=problem.reason,
    )


def _log_freed(problems: tuple[Problem, ...], *, valid: bool) -> None:
    """Log that a rejected object is valid now, or gone."""
    if valid:
        log.info("object_valid_again", object=problems[0].object)
    else:
        log.info("rejected_object_deleted", object=problems[0].object)
