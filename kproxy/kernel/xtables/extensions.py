"""Which match and target extensions the node's libxtables has, and which revision it shares with the kernel.

python-iptables asks the library itself, as iptables does in both variants. That loads shared objects into the
process and holds for one family only, so it takes place in a process of its own.
"""

import importlib.util
import sys
from collections.abc import Iterable, Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.xtables.programs import run
from kproxy.kernel.xtables.types import RestoreError

_SECONDS = 60.0
_NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}  # include/uapi/linux/netfilter.h

Revisions = Mapping[str, int | None]
"""`match NAME` or `target NAME` -> the newest revision that library and kernel share; None: no extension."""


class ExtensionsError(Exception):
    """The library cannot be asked; the message says why."""


def is_available() -> bool:
    """Whether python-iptables is installed."""
    return importlib.util.find_spec("iptc") is not None


def revisions(family: Family, names: Iterable[str]) -> Revisions:
    """Ask for extensions by names such as `match recent`. Raises ExtensionsError."""
    argv = [sys.executable, "-m", __name__, family.name, *names]
    try:
        status, printed, stderr = run(argv, b"", _SECONDS)
    except RestoreError as error:
        raise ExtensionsError(error.message) from error
    if status:
        lines = stderr.decode("utf-8", "replace").strip().splitlines()
        told = lines[-1] if lines else "no reason given"
        raise ExtensionsError(f"python-iptables ended with status {status}: {told}")
    return msgspec.json.decode(printed, type=dict[str, int | None])


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
