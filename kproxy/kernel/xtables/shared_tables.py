"""Read tables that iptables-nft shares with native nft rules, and delete rules in them.

`iptables-nft-save` prints nothing of a table with one rule that it cannot print, and exits with 0; some such
rules end it in the middle of a table, with 3. But single chains are checked and printed alone, and
iptables-nft-restore accepts the command for that: one process reads all chains of proxies. Chains with hooks,
where native rules mostly are, and other programs' chains are read over netlink, where every rule has a line.
Observed with iptables 1.8.9 and 1.8.11.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.processes import Ended
from kproxy.kernel.xtables import failures, native
from kproxy.kernel.xtables.types import FailureKind, RestoreError

Listing = Callable[[bytes], Ended]
"""Runs iptables-nft-restore with an input. Raises RestoreError."""

_PREFIXES = ("KUBE-", "KPROXY-")
"""Name prefixes of the chains whose rules proxies compare as text."""

_NAME = re.compile(r"[\w.:/+-]+")
_UNPARSABLE = b"Parsing nftables rule failed"
_INCOMPATIBLE = b"is incompatible, use 'nft' tool"
_COUNTERS = re.compile(r" -c (\d+) (\d+)(?= -[jg] |$)")
_CHAIN_HEAD = re.compile("^-[NP] ", re.MULTILINE)
_READINGS = 3
_REFUSED = 32
"""Greatest number of chains with native rules in one table; with more, reading fails."""


def existing(family: Family) -> Sequence[str]:
    """The tables of iptables-nft that exist. Raises RestoreError."""
    try:
        found = native.tables(family)
    except OSError as error:
        raise _unreadable(family, "the tables", error) from error
    return [name for name in native.BUILT_IN if name in found]


def is_unreadable(ended: Ended) -> bool:
    """Whether iptables-nft-save failed because of a native rule."""
    return is_unparsable(ended.stderr) or _INCOMPATIBLE in ended.stdout + ended.stderr


def is_unparsable(stderr: bytes) -> bool:
    """Whether iptables-nft failed because of a native rule that it cannot parse; it has changed nothing."""
    return _UNPARSABLE in stderr


def read(family: Family, table: str, listing: Listing, *, counters: bool) -> bytes:
    """Return the table as iptables-nft-save would print it, with a line for each native rule.

    Empty for a table without chains. Raises RestoreError.
    """
    text = b""
    for _ in range(_READINGS):
        before = _generation()
        text = _read(family, table, listing, counters=counters)
        if _generation() == before:
            break
    return text


def read_chains(family: Family, table: str, chains: Sequence[str]) -> Mapping[str, str]:
    """Return the rules of chains, a line for each as in `read`, without iptables-nft. Raises RestoreError."""
    try:
        return {name: _lines(family, table, name) for name in chains}
    except OSError as error:
        raise _unreadable(family, f"table {table}", error) from error


def delete_rules(family: Family, text: bytes) -> bytes | None:
    """Apply the `-D` commands of a restore input for one table; return the input without them.

    Returns None and changes nothing if there are none, or if a rule to delete is missing. Raises
    RestoreError.
    """
    lines = text.decode("utf-8", "surrogateescape").splitlines(keepends=True)
    deletions = [line for line in lines if line.startswith("-D ")]
    if not deletions or sum(line.startswith("*") for line in lines) != 1:
        return None
    table = lines[0][1:].strip()
    standing: dict[str, list[native.Rule]] = {}
    doomed: list[tuple[str, int]] = []
    try:
        for deletion in deletions:
            chain = deletion.split(" ", 2)[1]
            if chain not in standing:
                standing[chain] = list(native.rules(family, table, chain))
            wanted = f"-A {deletion.removeprefix('-D ').rstrip()}\n"
            found = next((rule for rule in standing[chain] if rule.line == wanted), None)
            if found is None:
                return None
            standing[chain].remove(found)
            doomed.append((chain, found.handle))
        native.delete(family, table, doomed)
    except OSError as error:
        raise _unreadable(family, f"table {table}", error) from error
    kept = [line for line in lines if not line.startswith("-D ")]
    return "".join(kept).encode("utf-8", "surrogateescape")


def _read(family: Family, table: str, listing: Listing, *, counters: bool) -> bytes:
    try:
        found = {name: kind for name, kind in native.chains(family, table).items() if _NAME.fullmatch(name)}
        if not found:
            return b""
        own = [name for name, kind in found.items() if kind == "-" and name.startswith(_PREFIXES)]
        printed = print_chains(table, own, listing, counters=counters)
        # iptables-nft-save prints the built-in chains even if they do not exist.
        every = {**dict.fromkeys(native.BUILT_IN[table], "ACCEPT"), **found}
        parts = [f"*{table}\n", *(f":{name} {kind} [0:0]\n" for name, kind in every.items())]
        for name in found:
            rules = printed.get(name)
            if rules is None:
                rules = _lines(family, table, name)
                rules = re.sub("^-A", "[0:0] -A", rules, flags=re.MULTILINE) if counters else rules
            parts.append(rules)
    except OSError as error:
        raise _unreadable(family, f"table {table}", error) from error
    return "".join([*parts, "COMMIT\n"]).encode("utf-8", "surrogateescape")


def print_chains(
    table: str, chains: Sequence[str], listing: Listing, *, counters: bool = False
) -> Mapping[str, str]:
    """Return the rules of each chain that iptables-nft can print. Raises RestoreError."""
    printed: dict[str, str] = {}
    waiting = list(chains)
    refused = 0
    while waiting:
        ended, texts = _list(table, waiting, listing, counters=counters)
        if ended.status == 0:
            return printed | texts
        if not is_unreadable(ended):
            raise failures.from_exit(ended.status, ended.stderr)
        # It stops at the first chain that it cannot print: the last one in its output, or the one after it.
        # All chains before are complete.
        whole = len(texts) - 1
        if whole <= 0:
            alone = texts and _list(table, waiting[:1], listing, counters=counters)
            if alone and alone[0].status == 0:
                printed |= alone[1]
                whole = 2
            else:
                whole = 1
            refused += 1
            if refused > _REFUSED:
                message = f"table {table} cannot be read: native nft rules in more than {_REFUSED} chains"
                raise RestoreError(FailureKind.OTHER, message)
        else:
            printed |= dict(list(texts.items())[:whole])
        del waiting[:whole]
    return printed


def _list(
    table: str, chains: Sequence[str], listing: Listing, *, counters: bool
) -> tuple[Ended, dict[str, str]]:
    """Print chains by iptables-nft; return the program's result, and the rules of each printed chain."""
    verbose = "-v " if counters else ""
    script = "".join([f"*{table}\n", *(f"{verbose}-S {name}\n" for name in chains), "COMMIT\n"])
    ended = listing(script.encode())
    texts: dict[str, str] = {}
    for part in _CHAIN_HEAD.split(ended.stdout.decode("utf-8", "surrogateescape"))[1:]:
        name, _, rules = part.partition("\n")
        if rules and not rules.endswith("\n"):
            rules += "\n"
        texts[name.split()[0]] = _with_counters(rules) if counters else rules
    return ended, texts


def _lines(family: Family, table: str, chain: str) -> str:
    return "".join(rule.line for rule in native.rules(family, table, chain))


def _with_counters(rules: str) -> str:
    """Rules as `iptables-save -c` prints them, from what `iptables -v -S` prints."""
    lines = []
    for line in rules.splitlines():
        found = _COUNTERS.search(line)
        counts = f"[{found[1]}:{found[2]}]" if found else "[0:0]"
        lines.append(f"{counts} {line[: found.start()] + line[found.end() :] if found else line}\n")
    return "".join(lines)


def _generation() -> int | None:
    try:
        return generations.generation()
    except OSError:
        return None


def _unreadable(family: Family, subject: str, error: OSError) -> RestoreError:
    return RestoreError(FailureKind.OTHER, f"{family}: {subject} cannot be read: {error.strerror or error}")
