"""One transaction on one table, as commands, which are written over netlink, or as text for `nft -f`.

Rules and declarations are text in nft's language; rules.py and declarations.py parse the part that kproxy
uses.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from kproxy.addresses import Family

TABLE_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}
"""nftables' names of the families."""


class AddTable(msgspec.Struct, frozen=True):
    """Make the table if it does not exist."""

    def line(self, table: str) -> str:
        """The command as text."""
        return f"add table {table}"


class DeleteTable(msgspec.Struct, frozen=True):
    """Delete the table, which must exist, with its contents."""

    def line(self, table: str) -> str:
        """The command as text."""
        return f"delete table {table}"


class AddContainer(msgspec.Struct, frozen=True):
    """Make a map or set (`kind`) if it does not exist; refused if it has another declaration."""

    kind: str
    name: str
    declaration: str

    def line(self, table: str) -> str:
        """The command as text."""
        return f"add {self.kind} {table} {self.name} {{ {self.declaration} }}"


class DeleteContainer(msgspec.Struct, frozen=True):
    """Delete a map or set that no rule refers to."""

    kind: str
    name: str

    def line(self, table: str) -> str:
        """The command as text."""
        return f"delete {self.kind} {table} {self.name}"


class AddChain(msgspec.Struct, frozen=True):
    """Make a chain if it does not exist; `hook` is the hook of a base chain, else ""."""

    name: str
    hook: str = ""

    def line(self, table: str) -> str:
        """The command as text."""
        hook = f" {{ {self.hook} }}" if self.hook else ""
        return f"add chain {table} {self.name}{hook}"


class FlushChain(msgspec.Struct, frozen=True):
    """Delete all rules of a chain."""

    name: str

    def line(self, table: str) -> str:
        """The command as text."""
        return f"flush chain {table} {self.name}"


class DeleteChain(msgspec.Struct, frozen=True):
    """Delete a chain that nothing refers to."""

    name: str

    def line(self, table: str) -> str:
        """The command as text."""
        return f"delete chain {table} {self.name}"


class AddRule(msgspec.Struct, frozen=True):
    """Append a rule to a chain."""

    chain: str
    rule: str

    def line(self, table: str) -> str:
        """The command as text."""
        return f"add rule {table} {self.chain} {self.rule}"


class AddElements(msgspec.Struct, frozen=True):
    """Add elements (value by key, "" in sets) to a map or set with this declaration.

    An equal element may exist, a different one of the same key may not.
    """

    container: str
    declaration: str
    elements: Mapping[str, str]

    def line(self, table: str) -> str:
        """The command as text."""
        shown = ", ".join(element_text(*each) for each in self.elements.items())
        return f"add element {table} {self.container} {{ {shown} }}"


class DeleteElements(msgspec.Struct, frozen=True):
    """Delete elements, which must exist, of a map or set with this declaration."""

    container: str
    declaration: str
    keys: Sequence[str]

    def line(self, table: str) -> str:
        """The command as text."""
        return f"delete element {table} {self.container} {{ {', '.join(self.keys)} }}"


Command = (
    AddTable
    | DeleteTable
    | AddContainer
    | DeleteContainer
    | AddChain
    | FlushChain
    | DeleteChain
    | AddRule
    | AddElements
    | DeleteElements
)


class Transaction(msgspec.Struct, frozen=True):
    """Commands on the table of one family and name, which take effect together or not at all."""

    family: Family
    table: str
    commands: Sequence[Command]

    def __str__(self) -> str:
        """The commands as input for `nft -f`, a line for each."""
        return "".join(f"{line}\n" for line in self.lines())

    @property
    def target(self) -> str:
        """The family and name of the table as nft writes them, e.g. `ip kproxy`."""
        return f"{TABLE_FAMILY[self.family]} {self.table}"

    def lines(self) -> Iterator[str]:
        """The commands as text."""
        for command in self.commands:
            yield command.line(self.target)


def element_text(key: str, value: str) -> str:
    """An element as text."""
    return f"{key} : {value}" if value else key
