"""The applied state: what the kernel's table holds, as read, and updated by every committed transaction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.backends.policy.chains import Chain
from kproxy.kernel.nft.listed import listed, listed_hook
from kproxy.kernel.nft.types import Reading


class Record:
    """One table: `held` has the elements of each map and set, `chains` the rules, None where unknown.

    `strange`: maps and sets that are not kproxy's, as `map NAME` or `set NAME`.
    """

    def __init__(self) -> None:
        self.held: dict[str, dict[str, str]] = {}
        self.chains: dict[str, Chain | None] = {}
        self.strange: set[str] = set()
        self._found: Mapping[str, tuple[str, ...]] = {}

    @classmethod
    def of(cls, found: Reading) -> Self:
        """The record of a table as read; the rules are unknown until `recognise`."""
        record = cls()
        elements = found.elements or {}
        for each in found.containers:
            kind, _, name = each.partition(" ")
            if names.declaration_of(Family.IPV4, name) is None or names.kind_of(name) != kind:
                record.strange.add(each)
            else:
                record.held[name] = dict(elements.get(name, {}))
        record.chains = dict.fromkeys(found.chains)
        record._found = found.chains
        return record

    def recognise(self, family: Family, wanted: Mapping[str, Chain], hooks: Mapping[str, str]) -> None:
        """Record the rules of those chains that were read just as they would be written."""
        for name, rules in wanted.items():
            lines = self._found.get(name)
            if lines is None or self.chains.get(name) is not None:
                continue
            if is_listed(family, rules, hooks.get(name, ""), lines):
                self.chains[name] = rules
        self._found = {}

    def is_found(
        self, family: Family, found: Mapping[str, tuple[str, ...]], hooks: Mapping[str, str]
    ) -> bool:
        """Whether every chain was read just as it was written, and no other."""
        return found.keys() == self.chains.keys() and all(
            rules is not None and is_listed(family, rules, hooks.get(name, ""), found[name])
            for name, rules in self.chains.items()
        )

    def apply(
        self,
        chains: Mapping[str, Chain],
        doomed: Mapping[str, Iterable[str]],
        fresh: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Note written chains, and elements that were deleted and added by map and set."""
        self.chains |= chains
        for name, keys in doomed.items():
            held = self.held[name]
            for key in keys:
                del held[key]
        for name, elements in fresh.items():
            self.held.setdefault(name, {}).update(elements)

    def forget(self, objects: Iterable[str]) -> None:
        """Note that objects (`chain NAME`, `map NAME`, `set NAME`) were deleted."""
        for each in objects:
            kind, _, name = each.partition(" ")
            if kind == "chain":
                self.chains.pop(name, None)
            elif each in self.strange:
                self.strange.discard(each)
            else:
                self.held.pop(name, None)


def is_listed(family: Family, rules: Chain, hook: str, lines: Sequence[str]) -> bool:
    """Whether a reading's lines of a chain are those of these rules; False also if that cannot be known."""
    if hook:
        if lines[:1] != (listed_hook(hook),):
            return False
        lines = lines[1:]
    try:
        expected = listed(family, rules)
    except ValueError:  # it is reported when it is written
        return False
    return expected == tuple(line.partition(" ")[2] for line in lines)
