"""Take away everything of the iptables mode, and nothing else.

What the kubelet uses too stays where a kubelet is: KUBE-FIREWALL with its jumps, and KUBE-MARK-MASQ. A chain
of ours that somebody else's rule jumps to is emptied but kept, and reported: deleting it would break theirs.
"""

from collections.abc import Collection, Iterator

import msgspec

from kproxy.backends.iptables import names
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.iptables.known import KUBELETS_TOO, is_jump, is_known
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.restore import restore_text
from kproxy.backends.iptables.static import TABLES
from kproxy.kernel.xtables.types import Xtables


class Removal(msgspec.Struct, frozen=True):
    """What is to be removed from one table: rules of built-in chains, and chains.

    `kept` maps chains that must stay, because others refer to them, to one rule that does.
    """

    table: str
    rules: tuple[str, ...]
    chains: tuple[str, ...]
    kept: dict[str, str]

    def text(self) -> bytes:
        """The restore input that does it."""
        deletions = [f"-D {rule.removeprefix('-A ')}\n" for rule in self.rules]
        doomed = [chain for chain in self.chains if chain not in self.kept]
        return restore_text(self.table, declare=self.chains, rules=deletions, delete=doomed)


def plan_removal(dump: bytes, only: Collection[ChainId] | None = None) -> Iterator[Removal]:
    """Read an iptables-save dump; yield what to remove, table by table: everything, or `only` some chains."""
    tables = parse_save(dump)
    kubelet = any(hint in tables.get("mangle", {}) for hint in names.KUBELET_HINTS)
    for table in TABLES:
        chains = tables.get(table, {})
        ours = {
            chain
            for chain in chains
            if ((table, chain) in only if only is not None else _is_ours(table, chain))
            and not (kubelet and (table, chain) in KUBELETS_TOO)
        }
        rules: list[str] = []
        kept: dict[str, str] = {}
        for chain, lines in chains.items():
            if chain in ours:
                continue
            for line in lines:
                target = _target(line)
                if target not in ours:
                    continue
                if is_jump(table, line):
                    rules.append(line)
                else:
                    kept[target] = line
        if ours or rules:
            yield Removal(table, tuple(rules), tuple(sorted(ours)), kept)


def cleanup(xtables: Xtables) -> list[Removal]:
    """Remove the mode's rules from one family's tables; return what was removed. Raises RestoreError."""
    removals = list(plan_removal(xtables.save()))
    for removal in removals:
        xtables.restore(removal.text())
    return removals


def _is_ours(table: str, chain: str) -> bool:
    if chain == names.PROBE or is_known(table, chain):
        return True
    return table == "nat" and chain.startswith(names.SERVICE_CHAIN_PREFIXES)


def _target(line: str) -> str:
    words = line.rsplit(maxsplit=2)
    if len(words) == 3 and words[1] in {"-j", "-g"}:
        return words[2]
    return ""
