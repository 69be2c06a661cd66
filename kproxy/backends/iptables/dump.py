"""Split an iptables-save dump into chains: each a text, or each a list of lines.

A large node's dump has 200,000 rules. They are printed chain by chain, so each chain's rules are one slice of
the dump; slicing keeps the memory of a restart near that of the dump itself. For a cleanup, which reads
single rules, a chain is the list of its lines.
"""

import re
from collections.abc import Collection

_DECLARATION = re.compile(rb"^:(\S+) ", re.MULTILINE)


def chain_texts(dump: bytes) -> dict[str, dict[str, str]]:
    """Return table -> chain -> its rules, each a line that ends in a line feed.

    Chains without rules have an empty text. Raises ValueError for a truncated dump.
    """
    tables: dict[str, dict[str, str]] = {}
    start = _table_start(dump, 0)
    while start >= 0:
        end = dump.find(b"\nCOMMIT\n", start)
        if end < 0:
            raise ValueError("the dump ends within a table")
        name = dump[start + 1 : dump.index(b"\n", start)].decode()
        tables[name] = _chains(dump, start, end + 1)
        start = _table_start(dump, end + 1)
    return tables


def parse_save(data: bytes, tables: Collection[str] | None = None) -> dict[str, dict[str, list[str]]]:
    """Split a dump into table -> chain -> rule lines, each line as printed, without counters.

    Chains without rules have an empty list; comments and counters are ignored; `tables` limits the result.
    Raises ValueError for a truncated dump.
    """
    result: dict[str, dict[str, list[str]]] = {}
    text = data.decode("utf-8", "surrogateescape")
    start = 0
    while (start := _next_table(text, start)) >= 0:
        end = text.find("\nCOMMIT\n", start)
        following = text.find("\n*", start)
        if end < 0 or 0 <= following < end:
            msg = "the dump has a table without COMMIT"
            raise ValueError(msg)
        name, _, body = text[start + 1 : end].partition("\n")
        if tables is None or name in tables:
            _add_chains(body, result.setdefault(name.rstrip(), {}))
        start = end + len("\nCOMMIT\n")
    return result


def _table_start(dump: bytes, position: int) -> int:
    if dump.startswith(b"*", position):
        return position
    found = dump.find(b"\n*", position)
    return found + 1 if found >= 0 else -1


def _chains(dump: bytes, start: int, end: int) -> dict[str, str]:
    first = dump.find(b"\n-A ", start, end)
    position = first + 1 if first >= 0 else end
    chains = dict.fromkeys((m[1].decode() for m in _DECLARATION.finditer(dump, start, position)), "")
    while dump.startswith(b"-A ", position) and position < end:
        # A rule that matches everything and decides nothing ends behind the chain's name.
        line = dump[position + 3 : dump.index(b"\n", position)]
        name = line.partition(b" ")[0]
        starts = (b"-A " + name + b" ", b"-A " + name + b"\n")
        begin = position
        while dump.startswith(starts, position):
            position = dump.index(b"\n", position) + 1
        chains[name.decode()] = dump[begin:position].decode("utf-8", "surrogateescape")
    return chains


def _next_table(text: str, start: int) -> int:
    """Return the position of the next table's first line, past comments and empty lines; -1 at the end."""
    while start < len(text) and text[start] != "*":
        end = text.find("\n", start)
        line = text[start:] if end < 0 else text[start:end]
        if line and not line.startswith("#"):
            msg = f"not a line of a dump: {line!r}"
            raise ValueError(msg)
        start = len(text) if end < 0 else end + 1
    return start if start < len(text) else -1


def _add_chains(body: str, chains: dict[str, list[str]]) -> None:
    """Add a table's lines to `chains`; the most frequent case is tested first, as there may be 230,000."""
    prefix = "\n"
    append = [""].append
    for line in body.split("\n"):
        if line.startswith(prefix):
            append(line)
        elif line.startswith(":"):
            chains[line[1 : line.index(" ")]] = []
        elif line.startswith(("-A ", "[")):
            rule = line if line[0] == "-" else line[line.index(" ") + 1 :]  # save -c: counters come first
            end = rule.find(" ", 3)
            name = rule[3:end] if end > 0 else rule[3:]
            append = (chains[name] if name in chains else chains.setdefault(name, [])).append
            prefix = f"-A {name} "
            append(rule)
        elif line and not line.startswith("#"):
            msg = f"not a line of a dump: {line!r}"
            raise ValueError(msg)
