"""Tables that iptables-nft shares with native nft rules: read them, and delete rules in them, nevertheless.

`iptables-nft-save` prints nothing of a table that has one rule it has no words for, and exits with 0; some
such rules end it in the middle of a table, with 3. But single chains are checked and printed alone, and
iptables-nft-restore takes the command for that: one process reads all chains of proxies. Chains with hooks,
where native rules mostly are, and other programs' chains are read over netlink, where every rule has a line
in any case. Seen with iptables 1.8.9 and 1.8.11.
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
"""Names of chains that proxies compare word by word begin so."""

_NAME = re.compile(r"[\w.:/+-]+")
_UNPARSABLE = b"Parsing nftables rule failed"
_INCOMPATIBLE = b"is incompatible, use 'nft' tool"
_COUNTERS = re.compile(r" -c (\d+) (\d+)(?= -[jg] |$)")
_READINGS = 3
_REFUSED = 32
"""How many chains of one table may have native rules before the reading is given up."""


def existing(family: Family) -> Sequence[str]:
    """The tables of iptables-nft that exist. Raises RestoreError."""
    try:
        found = native.tables(family)
    except OSError as error:
        raise _unreadable(family, "the tables", error) from error
    return [name for name in native.BUILT_IN if name in found]


def is_unreadable(ended: Ended) -> bool:
    """Whether iptables-nft-save, which failed, did so because of a native rule."""
    return is_unparsable(ended.stderr) or _INCOMPATIBLE in ended.stdout + ended.stderr


def is_unparsable(stderr: bytes) -> bool:
    """Whether iptables-nft met a native rule that it cannot take apart; it has changed nothing then."""
    return _UNPARSABLE in stderr


def read(family: Family, table: str, listing: Listing, *, counters: bool) -> bytes:
    """The table as iptables-nft-save would print it, with a line for each native rule.

    A table that has no chains is empty text. Raises RestoreError.
    """
    text = b""
    for _ in range(_READINGS):
        before = _generation()
        text = _read(family, table, listing, counters=counters)
        if _generation() == before:
            break
    return text


def delete_rules(family: Family, text: bytes) -> bytes | None:
    """Carry out the `-D` commands of a restore input for one table; return the input without them.

    None, and nothing is done, if there are none, or a rule to delete is not there. Raises RestoreError.
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
        printed = _print(table, own, listing, counters=counters)
        # iptables-nft-save names the built-in chains also while they do not exist.
        every = {**dict.fromkeys(native.BUILT_IN[table], "ACCEPT"), **found}
        parts = [f"*{table}\n", *(f":{name} {kind} [0:0]\n" for name, kind in every.items())]
        for name in found:
            rules = printed.get(name)
            if rules is None:
                rules = "".join(rule.line for rule in native.rules(family, table, name))
                rules = re.sub("^-A", "[0:0] -A", rules, flags=re.MULTILINE) if counters else rules
            parts.append(rules)
    except OSError as error:
        raise _unreadable(family, f"table {table}", error) from error
    return "".join([*parts, "COMMIT\n"]).encode("utf-8", "surrogateescape")


def _print(table: str, chains: Sequence[str], listing: Listing, *, counters: bool) -> Mapping[str, str]:
    """The rules of each chain that iptables-nft can print. Raises RestoreError."""
    printed: dict[str, str] = {}
    waiting = list(chains)
    refused = 0
    while waiting:
        ended, texts = _list(table, waiting, listing, counters=counters)
        if ended.status == 0:
            return printed | texts
        if not is_unreadable(ended):
            raise failures.from_exit(ended.status, ended.stderr)
        # It stops at the first chain that it cannot print, the last one of which something was printed or the
        # one behind it: what came before is whole.
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
    """Let iptables-nft print chains: how it ended, and the rules of each chain up to there."""
    verbose = "-v " if counters else ""
    script = "".join([f"*{table}\n", *(f"{verbose}-S {name}\n" for name in chains), "COMMIT\n"])
    ended = listing(script.encode())
    texts: dict[str, str] = {}
    for part in f"\n{ended.stdout.decode('utf-8', 'surrogateescape')}".split("\n-N ")[1:]:
        name, _, rules = part.partition("\n")
        if rules and not rules.endswith("\n"):
            rules += "\n"
        texts[name.split()[0]] = _with_counters(rules) if counters else rules
    return ended, texts


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
