"""Builds the commands of one transaction on the table."""

from collections.abc import Iterable, Mapping

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.backends.policy.chains import Chain
from kproxy.kernel.nft.commands import (
    AddChain,
    AddContainer,
    AddElements,
    AddRule,
    AddTable,
    Command,
    DeleteChain,
    DeleteContainer,
    DeleteElements,
    DeleteTable,
    FlushChain,
    Transaction,
)


class Script:
    """Collects the commands of one transaction."""

    def __init__(self, family: Family, table: str = names.TABLE) -> None:
        self._family = family
        self._table = table
        self._commands: list[Command] = []

    def __str__(self) -> str:
        return str(self.transaction())

    def __bool__(self) -> bool:
        return bool(self._commands)

    def transaction(self) -> Transaction:
        """All commands so far."""
        return Transaction(self._family, self._table, tuple(self._commands))

    def make_table(self) -> None:
        """Make the table, if it does not exist."""
        self._commands.append(AddTable())

    def remove_table(self) -> None:
        """Delete the table with its contents; it need not exist."""
        self._commands += [AddTable(), DeleteTable()]

    def declare(self, containers: Iterable[str]) -> None:
        """Make maps and sets."""
        for name in containers:
            self._commands.append(AddContainer(names.kind_of(name), name, self._declaration(name)))

    def chains(self, chains: Mapping[str, Chain], hooks: Mapping[str, str], standing: Iterable[str]) -> None:
        """Make chains, or write their rules again if they are `standing`; all exist before the first rule."""
        self._commands += [AddChain(name, hooks.get(name, "")) for name in chains]
        self._commands += [FlushChain(name) for name in chains if name in standing]
        self._commands += [AddRule(name, rule) for name, rules in chains.items() for rule in rules]

    def delete_chains(self, chains: Iterable[str], containers: Iterable[str]) -> None:
        """Delete chains that may refer to each other, and maps and sets that only they read."""
        doomed = tuple(chains)
        self._commands += map(FlushChain, doomed)
        self._commands += [DeleteContainer(*each.split(" ")) for each in containers]
        self._commands += map(DeleteChain, doomed)

    def delete_elements(self, container: str, keys: Iterable[str]) -> None:
        """Delete elements that exist."""
        if doomed := tuple(keys):
            self._commands.append(DeleteElements(container, self._declaration(container), doomed))

    def add_elements(self, container: str, elements: Mapping[str, str]) -> None:
        """Add elements; an equal one may exist, a different one of the same key may not."""
        if elements:
            self._commands.append(AddElements(container, self._declaration(container), elements))

    def _declaration(self, container: str) -> str:
        declaration = names.declaration_of(self._family, container)
        if declaration is None:
            raise ValueError(f"{container} is no map or set of the table")
        return declaration
