"""Builds the commands of one transaction."""

from collections.abc import Iterable, Mapping

from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import BaseChain, Chain, base_chains, fixed_chains
from kproxy.backends.nftables.config import NftablesConfig
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
    """Collects the commands of one transaction on the table of one family."""

    def __init__(self, config: NftablesConfig, table: str = names.TABLE) -> None:
        self._table = table
        self._family = config.family
        self._commands: list[Command] = []

    def __str__(self) -> str:
        return str(self.transaction())

    def __bool__(self) -> bool:
        return bool(self._commands)

    def transaction(self) -> Transaction:
        """All commands so far."""
        return Transaction(self._family, self._table, tuple(self._commands))

    def remove_table(self) -> None:
        """Delete the table with its contents; it need not exist."""
        self._commands += [AddTable(), DeleteTable()]

    def declare(self, config: NftablesConfig) -> None:
        """Make the table, its maps and sets, if they do not exist."""
        self._commands.append(AddTable())
        for what, declaration in names.declarations(config.family).items():
            kind, name = what.split(" ")
            self._commands.append(AddContainer(kind, name, declaration))

    def base(self, config: NftablesConfig) -> None:
        """Write every chain that depends on no service, base chains last."""
        self.chains(fixed_chains())
        base = base_chains(config)
        self._commands += [AddChain(name, chain.hook) for name, chain in base.items()]
        for name, chain in base.items():
            self._rules(name, chain.rules)

    def chains(self, chains: Mapping[str, Chain]) -> None:
        """Make or rewrite chains, with the maps and sets that exist only while a chain reads them."""
        self.declare_missing({name for rules in chains.values() for name in names.read_by(rules)})
        self._commands += map(AddChain, chains)
        for name, rules in chains.items():
            self._rules(name, rules)

    def declare_missing(self, some: Iterable[str]) -> None:
        """Make those of these maps and sets that exist only while a chain reads them."""
        for what in sorted(what for name in some if (what := names.object_of(name))):
            kind, name = what.split(" ")
            self._commands.append(AddContainer(kind, name, self._declaration(name)))

    def delete_chains(self, chains: Iterable[str]) -> None:
        """Delete chains that may refer to each other."""
        doomed = tuple(chains)
        self._commands += map(FlushChain, doomed)
        self._commands += map(DeleteChain, doomed)

    def delete_containers(self, objects: Iterable[str]) -> None:
        """Delete maps and sets, by `map NAME` or `set NAME`, with their elements."""
        self._commands += [DeleteContainer(*each.split(" ")) for each in objects]

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

    def _rules(self, name: str, rules: Chain) -> None:
        self._commands.append(FlushChain(name))
        self._commands += [AddRule(name, rule) for rule in rules]


def rules_of(config: NftablesConfig) -> dict[str, Chain]:
    """The rules of every chain that depends on no service, by name."""
    base: Mapping[str, BaseChain] = base_chains(config)
    return fixed_chains() | {name: chain.rules for name, chain in base.items()}
