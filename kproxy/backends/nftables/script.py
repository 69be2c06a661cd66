"""What is written, as the text of one nft transaction."""

from collections.abc import Iterable, Mapping

from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import BaseChain, Chain, base_chains, fixed_chains, pick_of
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.kernel.nft.types import TABLE_FAMILY


class Script:
    """Collects the commands of one transaction on the table of one family."""

    def __init__(self, config: NftablesConfig, table: str = names.TABLE) -> None:
        self._table = f"{TABLE_FAMILY[config.family]} {table}"
        self._family = config.family
        self._lines: list[str] = []

    def __str__(self) -> str:
        return "".join(self._lines)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def remove_table(self) -> None:
        """Delete the table with all that is in it, whether it exists or not."""
        self._lines += [f"add table {self._table}\n", f"delete table {self._table}\n"]

    def declare(self, config: NftablesConfig) -> None:
        """Make the table, its maps and sets, as far as they do not exist."""
        self._lines.append(f"add table {self._table}\n")
        for what, declaration in names.declarations(config.family).items():
            kind, name = what.split(" ")
            self._lines.append(f"add {kind} {self._table} {name} {{ {declaration} }}\n")

    def fixed(self, config: NftablesConfig) -> None:
        """Write every chain that depends on no service; those that the kernel calls last."""
        self.chains(fixed_chains(config))
        base = base_chains(config)
        for name, chain in base.items():
            self._lines.append(f"add chain {self._table} {name} {{ {chain.hook} }}\n")
        for name, chain in base.items():
            self._rules(name, chain.rules)

    def chains(self, chains: Mapping[str, Chain]) -> None:
        """Make or rewrite chains; those that pick may not exist, and bring their map."""
        for name in chains:
            picking = pick_of(self._family, name)
            if picking is not None and picking[0] is not None:
                declaration = names.numbered_declaration(self._family)
                self._lines.append(f"add map {self._table} {picking[0]} {{ {declaration} }}\n")
        self._lines += [f"add chain {self._table} {name}\n" for name in chains]
        for name, rules in chains.items():
            self._rules(name, rules)

    def delete_chains(self, chains: Iterable[str]) -> None:
        """Delete chains that may refer to each other, with the maps of those that pick."""
        doomed = tuple(chains)
        for command in ("flush", "delete"):
            self._lines += [f"{command} chain {self._table} {name}\n" for name in doomed]
        for name in doomed:
            picking = pick_of(self._family, name)
            if picking is not None and picking[0] is not None:
                self._lines.append(f"delete map {self._table} {picking[0]}\n")

    def delete_elements(self, container: str, keys: Iterable[str]) -> None:
        """Delete elements that exist."""
        self._elements("delete", container, keys)

    def add_elements(self, container: str, elements: Mapping[str, str]) -> None:
        """Add elements; an equal one may exist, a different one of the same key may not."""
        self._elements("add", container, [f"{k} : {v}" if v else k for k, v in elements.items()])

    def _elements(self, command: str, container: str, elements: Iterable[str]) -> None:
        text = ", ".join(elements)
        if text:
            self._lines.append(f"{command} element {self._table} {container} {{ {text} }}\n")

    def _rules(self, name: str, rules: Chain) -> None:
        self._lines.append(f"flush chain {self._table} {name}\n")
        self._lines += [f"add rule {self._table} {name} {rule}\n" for rule in rules]


def rules_of(config: NftablesConfig) -> dict[str, Chain]:
    """The rules of every chain that depends on no service, by name."""
    base: Mapping[str, BaseChain] = base_chains(config)
    return fixed_chains(config) | {name: chain.rules for name, chain in base.items()}
