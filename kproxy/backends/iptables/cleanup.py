"""Remove all rules of the iptables mode, and no others.

On a node with a kubelet, the chains that it uses too are kept: KUBE-FIREWALL with its jumps, KUBE-MARK-MASQ.
A chain that a foreign rule jumps to cannot be deleted; it is emptied, kept and reported. nft rules may refer
to chains in ways that a dump does not show, so a refused removal is repeated in parts.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from kproxy.backends.core.bisect import bisect_refused
from kproxy.backends.iptables import names
from kproxy.backends.iptables.base_chains import TABLES
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.owned_chains import KUBELETS_TOO, is_jump, is_known
from kproxy.backends.iptables.restore import restore_text
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Xtables


class Removal(msgspec.Struct, frozen=True):
    """Rules of built-in chains and chains to be removed from one table.

    `kept` maps chains that cannot be deleted, because foreign rules refer to them, to one such rule or to the
    kernel's message when deletion was refused.
    """

    table: str
    rules: tuple[str, ...]
    chains: tuple[str, ...]
    kept: dict[str, str]

    def text(self) -> bytes:
        """The restore input that performs the removal."""
        return restore_text(self.table, declare=self.chains, rules=self.deletions, delete=self.doomed)

    @property
    def deletions(self) -> tuple[str, ...]:
        """The commands that delete the rules."""
        return tuple(f"-D {rule.removeprefix('-A ')}\n" for rule in self.rules)

    @property
    def doomed(self) -> tuple[str, ...]:
        """The chains that are not kept."""
        return tuple(chain for chain in self.chains if chain not in self.kept)


def plan_removal(dump: bytes, only: Collection[ChainId] | None = None) -> Iterator[Removal]:
    """Yield the removal for each table of an iptables-save dump: all owned chains, or `only` some."""
    tables = parse_save(dump)
    kubelet = any(hint in tables.get("mangle", {}) for hint in names.KUBELET_HINTS)
    for table in TABLES:
        chains = tables.get(table, {})
        own = owned(table, chains) if only is None else {each for each in chains if (table, each) in only}
        doomed = own - _kubelets(table) if kubelet else own
        rules: list[str] = []
        kept: dict[str, str] = {}
        for chain, lines in chains.items():
            if chain in doomed:
                continue
            for line in lines:
                target = _target(line)
                if target not in doomed:
                    continue
                if is_jump(table, line):
                    rules.append(line)
                else:
                    kept[target] = line
        if doomed or rules:
            yield Removal(table, tuple(rules), tuple(sorted(doomed)), kept)


Failed = Callable[[str, RestoreError], None]
"""Called with a table whose rules could not be removed, and the error."""


def cleanup(xtables: Xtables, failed: Failed | None = None) -> list[Removal]:
    """Remove the mode's rules from one family's tables; return the removals.

    If `failed` is set, it is called for a table whose removal fails, and the other tables are cleaned up.
    Raises RestoreError if the tables cannot be read, or if a removal fails and `failed` is None.
    """
    done: list[Removal] = []
    refused: dict[str, RestoreError] = {}
    for removal in plan_removal(xtables.save()):
        try:
            xtables.restore(removal.text())
            done.append(removal)
        except RestoreError as error:
            refused[removal.table] = error
    again = plan_removal(xtables.save()) if refused else ()
    for removal in again:
        reason = refused.get(removal.table)
        if reason is None:
            continue
        try:
            if reason.kind is not FailureKind.RULE:
                raise reason
            done.append(remove_in_parts(xtables, removal))
        except RestoreError as error:
            if failed is None:
                raise
            failed(removal.table, error)
    return done


def owned(table: str, chains: Iterable[str]) -> set[str]:
    """Those of a table's chains that kproxy or kube-proxy make, in any mode."""
    return {chain for chain in chains if _is_owned(table, chain)}


def left(chains: Mapping[str, Collection[str]]) -> list[ChainId]:
    """The chains of these tables that a cleanup would remove, sorted."""
    kubelet = any(hint in chains.get("mangle", ()) for hint in names.KUBELET_HINTS)
    found: list[ChainId] = []
    for table in TABLES:
        own = owned(table, chains.get(table, ()))
        found += [(table, chain) for chain in sorted(own - _kubelets(table) if kubelet else own)]
    return found


def remove_in_parts(xtables: Xtables, removal: Removal) -> Removal:
    """Remove rules, empty all chains, and delete as many chains as possible; return the removal done.

    Chains that cannot be deleted are in `kept`, with the kernel's message. Raises RestoreError.
    """
    table = removal.table
    refused: dict[str, str] = {}
    if removal.rules:
        try:
            xtables.restore(restore_text(table, declare=(), rules=removal.deletions))
        except RestoreError as error:
            # The rules may be deleted already; one that is not keeps its chain, found by the bisection below.
            _classify_refusal(error)
    xtables.restore(restore_text(table, declare=removal.chains, rules=()))

    def delete(chains: Sequence[str]) -> None:
        xtables.restore(restore_text(table, declare=(), rules=(), delete=chains))

    def give_up(chain: str, error: RestoreError) -> None:
        refused[chain] = error.message

    bisect_refused(removal.doomed, delete, give_up, refusal=RestoreError, classify_refusal=_classify_refusal)
    return msgspec.structs.replace(removal, kept={**removal.kept, **refused})


def _kubelets(table: str) -> set[str]:
    return {chain for where, chain in KUBELETS_TOO if where == table}


def _classify_refusal(error: RestoreError) -> None:
    if error.kind is not FailureKind.RULE:
        raise error


def _is_owned(table: str, chain: str) -> bool:
    if chain == names.PROBE or is_known(table, chain):
        return True
    return table == "nat" and chain.startswith(names.SERVICE_CHAIN_PREFIXES)


def _target(line: str) -> str:
    words = line.rsplit(maxsplit=2)
    if len(words) == 3 and words[1] in {"-j", "-g"}:
        return words[2]
    return ""
