"""The state that a full sync leaves in an empty kernel: the reference for every long history.

The objects of the embedded API server are written as manifests, `kproxy run --once` applies them in a network
namespace of its own, and both dumps are compared chain by chain.
"""

import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kproxy_lab.apiserver import ApiServer
from kproxy_lab.lab import Namespace
from kproxy_lab.lab.namespaces import NamespaceThread
from kproxy_lab.lab.owners import owned_prefix

Rules = dict[str, list[str]]
"""The rules of each chain in their order, by `table/chain`."""

_COUNTERS = re.compile(r" \[\d+:\d+\]$")
_KINDS = ("Node", "ServiceCIDR", "Service", "EndpointSlice")
_SECONDS = 600.0


def canonical(dump: str) -> Rules:
    """Read what iptables-save prints; comments, counters and the order of chains are left out."""
    chains: Rules = {}
    table = ""
    for line in dump.splitlines():
        match line[:1]:
            case "*":
                table = line[1:]
            case ":":
                chains[f"{table}/{line[1:].split()[0]}"] = []
            case "-":
                _, chain, _ = line.split(" ", 2)
                chains[f"{table}/{chain}"].append(_COUNTERS.sub("", line))
    return chains


def differences(found: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each extra, missing or different chain of `found`; empty if both are equal."""
    lines = []
    for name in sorted(found.keys() | wanted.keys()):
        if name not in wanted:
            lines.append(f"{name}: should not exist")
        elif name not in found:
            lines.append(f"{name}: is missing")
        elif list(found[name]) != list(wanted[name]):
            extra = [line for line in found[name] if line not in wanted[name]]
            missing = [line for line in wanted[name] if line not in found[name]]
            lines.append(f"{name}: {extra or 'its order'} instead of {missing or 'another order'}")
    return lines


@contextmanager
def namespace() -> Iterator[Namespace]:
    """An empty network namespace of its own. Needs root."""
    thread = NamespaceThread()
    made = Namespace(owned_prefix(secrets.token_hex(3)) + "fresh", thread)
    try:
        yield made
    finally:
        made.close()
        thread.close()


def write_manifests(api: ApiServer, directory: Path) -> None:
    """Write the objects that kproxy reads to a directory, a List for each kind."""
    for kind in _KINDS:
        items = {"apiVersion": "v1", "kind": "List", "items": api.list(kind)}
        (directory / f"{kind}.json").write_bytes(msgspec.json.encode(items))


def sync_once(place: Namespace, directory: Path, arguments: Sequence[str]) -> None:
    """Apply the manifests of a directory in a namespace with `kproxy run --once`.

    Raises subprocess.CalledProcessError if any service was refused.
    """
    argv = [sys.executable, "-m", "kproxy", "run", "--once", "--manifests", str(directory), *arguments]
    place.run(argv, timeout=_SECONDS)


def rules_in(place: Namespace, save: str) -> Rules:
    """The rules of a namespace, as the program `save` (iptables-nft-save, ...) prints them."""
    return canonical(place.run([save], timeout=_SECONDS).stdout)
