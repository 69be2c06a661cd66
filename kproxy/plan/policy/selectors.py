"""Label selectors, read strictly and brought into one normal form.

Equal selectors must be equal values, whatever notation a policy uses: they share a set in the kernel.
`matchLabels` becomes requirements with operator In, and requirements and values are sorted. What the API
server refuses is a defect here too, because manifests come without its checks.
"""

import enum
import functools
import itertools
import re
import sys
from collections.abc import Collection, Mapping

import msgspec

from kproxy.plan.policy import limits
from kproxy.plan.policy.defects import Defects

Labels = Mapping[str, str]

_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_LONGEST_NAME, _LONGEST_PREFIX = 63, 253
_LONGEST_KEY = _LONGEST_PREFIX + len("/") + _LONGEST_NAME
_NO_KEY, _NO_VALUE = "is not a label key", "is not a label value"


class Operator(enum.StrEnum):
    """Operators of matchExpressions (metav1.LabelSelectorOperator)."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


_FEW = 8
"""Values that are searched one by one, which takes as long as a set does, and no memory."""

_OPERATORS = {each.value: each for each in Operator}


class WireRequirement(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    """matchExpressions[] as the API has it."""

    key: str
    operator: str
    values: tuple[str, ...] | None = None


class WireSelector(
    msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """A LabelSelector as the API has it."""

    match_labels: dict[str, str] | None = None
    match_expressions: tuple[WireRequirement, ...] | None = None


class Requirement(msgspec.Struct, frozen=True, gc=False, order=True):
    """One requirement; `values` are sorted, without duplicates, and `lookup` has the same, for searching."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()
    lookup: Collection[str] = ()

    def __str__(self) -> str:
        if self.operator is Operator.EXISTS:
            return self.key
        if self.operator is Operator.DOES_NOT_EXIST:
            return f"!{self.key}"
        if len(self.values) == 1:
            return f"{self.key}{'=' if self.operator is Operator.IN else '!='}{self.values[0]}"
        word = "in" if self.operator is Operator.IN else "notin"
        return f"{self.key} {word} ({', '.join(self.values)})"


class Selector(msgspec.Struct, frozen=True, gc=False, order=True):
    """All of `requirements` must be met; without any, everything is selected. They are sorted."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """Whether it selects something with these labels; a missing key meets NotIn and DoesNotExist."""
        for each in self.requirements:
            operator = each.operator
            if operator is Operator.IN:
                if labels.get(each.key) not in each.lookup:
                    return False
            elif operator is Operator.NOT_IN:
                if labels.get(each.key) in each.lookup:
                    return False
            elif (each.key in labels) is not (operator is Operator.EXISTS):
                return False
        return True

    def single(self, key: str) -> str | None:
        """The value, if the selector is nothing but `key` = one value."""
        if len(self.requirements) != 1:
            return None
        (only,) = self.requirements
        one = only.key == key and only.operator is Operator.IN and len(only.values) == 1
        return only.values[0] if one else None

    def content(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Plain values that are equal for equal selectors."""
        return tuple((each.key, each.operator.value, each.values) for each in self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))


EVERYTHING = Selector()


def read_selector(wire: WireSelector, path: str, defects: Defects) -> Selector:
    """The normal form. What is invalid is added to `defects` under `path`; the result then means nothing."""
    labels, expressions = wire.match_labels or {}, wire.match_expressions or ()
    values = len(labels) + sum(len(each.values or ()) for each in expressions)
    if not (
        defects.within(path, len(labels) + len(expressions), limits.REQUIREMENTS, "requirements")
        and defects.within(path, values, limits.VALUES, "values")
    ):
        return EVERYTHING
    found: list[Requirement] = []
    for key, value in labels.items():
        if not is_label_key(key):
            defects.add(f"{path}.matchLabels", key, _NO_KEY)
        if not is_label_value(value):
            defects.add(f"{path}.matchLabels[{key}]", value, _NO_VALUE)
        found.append(_made(key, Operator.IN, (value,)))
    for number, each in enumerate(expressions):
        requirement = _requirement(each, f"{path}.matchExpressions[{number}]", defects)
        if requirement is not None:
            found.append(requirement)
    if len(found) > 1:
        found.sort()
        found = [each for each, _ in itertools.groupby(found)]
    return Selector(tuple(found))


def _requirement(wire: WireRequirement, path: str, defects: Defects) -> Requirement | None:
    if not is_label_key(wire.key):
        defects.add(f"{path}.key", wire.key, _NO_KEY)
    values = wire.values or ()
    operator = _OPERATORS.get(wire.operator)
    if operator is None:
        defects.add(f"{path}.operator", wire.operator, f"must be one of {', '.join(Operator)}")
        return None
    if operator is Operator.IN or operator is Operator.NOT_IN:
        if not values:
            defects.add(f"{path}.values", values, f"operator {operator} needs at least one")
        for number, value in enumerate(values):
            if not is_label_value(value):
                defects.add(f"{path}.values[{number}]", value, _NO_VALUE)
    elif values:
        defects.add(f"{path}.values", values, f"operator {operator} allows none")
    return _made(wire.key, operator, values)


def _made(key: str, operator: Operator, values: tuple[str, ...]) -> Requirement:
    values = tuple(map(sys.intern, values if len(values) < 2 else sorted(set(values))))
    return Requirement(sys.intern(key), operator, values, frozenset(values) if len(values) > _FEW else values)


def is_label_key(key: str) -> bool:
    """Whether the API server takes it as a label's key (a qualified name)."""
    return len(key) <= _LONGEST_KEY and _has_syntax_of_key(key)


def is_label_value(value: str) -> bool:
    """Whether the API server takes it as a label's value."""
    return len(value) <= _LONGEST_NAME and _has_syntax_of_value(value)


@functools.lru_cache(maxsize=1024)
def _has_syntax_of_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > _LONGEST_PREFIX or not _PREFIX.fullmatch(prefix)):
        return False
    return _NAME.fullmatch(name) is not None


@functools.lru_cache(maxsize=1024)
def _has_syntax_of_value(value: str) -> bool:
    return not value or _NAME.fullmatch(value) is not None
