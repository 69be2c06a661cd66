"""Find the match and target extensions of the node's libxtables, and the revisions shared with the kernel.

python-iptables uses the library itself, as iptables does in both variants. That loads shared objects into the
process and works for one family only, so it is done in a separate process.
"""

import sys
from collections.abc import Iterable, Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.xtables.python_iptables import run_apart

_NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}  # include/uapi/linux/netfilter.h

Revisions = Mapping[str, int | None]
"""`match NAME` or `target NAME` -> the newest revision that library and kernel share; None: no extension."""


def revisions(family: Family, names: Iterable[str]) -> Revisions:
    """Look up extensions by names such as `match recent`. Raises PythonIptablesError."""
    return msgspec.json.decode(run_apart(__name__, family.name, *names), type=dict[str, int | None])


def _ask(family: Family, names: Iterable[str]) -> Revisions:
    from iptc.xtables import xtables

    library = xtables(_NFPROTO[family])
    found: dict[str, int | None] = {}
    for name in names:
        kind, _, word = name.partition(" ")
        extension = library.find_match(word) if kind == "match" else library.find_target(word)
        found[name] = int(extension[0].revision) if extension else None
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_ask(Family[sys.argv[1]], sys.argv[2:])))
