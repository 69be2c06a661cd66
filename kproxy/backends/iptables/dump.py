"""Split an iptables-save dump into chains without taking it apart into lines.

A large node's dump has 200,000 rules. They are printed chain by chain, so each chain's rules are one slice of
the dump; cutting slices keeps the memory of a restart near that of the dump itself.
"""

import re

_DECLARATION = re.compile(rb"^:(\S+) ", re.MULTILINE)


def chain_texts(dump: bytes) -> dict[str, dict[str, str]]:
    """Return table -> chain -> its rules, each a line that ends in a line feed.

    Chains without rules are there with an empty text. Raises ValueError for a dump that was cut off: half a
    table must not be taken for the whole.
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
        name = dump[position + 3 : dump.index(b" ", position + 3)]
        prefix = b"-A " + name + b" "
        begin = position
        while dump.startswith(prefix, position):
            position = dump.index(b"\n", position) + 1
        chains[name.decode()] = dump[begin:position].decode("utf-8", "surrogateescape")
    return chains
