"""Build iptables-restore input: one table at a time, so that each is applied as a whole or not at all.

Chain declarations are sorted: with --noflush, iptables-nft inserts each into a list that it searches in
order, and unsorted declarations take quadratic time.
"""

from collections.abc import Iterable, Sequence

import msgspec

from kproxy.kernel.xtables.types import NATIVE_RULE

MAX_EDITS = 64
"""Above this many single-rule edits of one chain, rewriting the chain is cheaper."""


class Edit(msgspec.Struct, frozen=True):
    """The commands that change one shared chain from one list of rules to another.

    `flush`: the chain is declared, and so emptied, first. `lines` are commands of the restore format; `rules`
    counts them.
    """

    flush: bool
    lines: tuple[str, ...]

    @property
    def rules(self) -> int:
        """How many rules are written or deleted."""
        return len(self.lines)


def edit(chain: str, old: Sequence[str] | None, new: Sequence[str]) -> Edit | None:
    """Find the cheapest edit from `old` (None: no such chain yet) to `new`; None if they are equal.

    Every line is an `-A CHAIN` command with its line feed. A few differences become insertions and single
    deletions. Deletions name the rule's text, so that a missing rule is an error and no other rule is
    deleted. Many differences rewrite the chain, and so does a rule to delete that cannot be named by its
    text.
    """
    if old is None:
        return Edit(flush=True, lines=tuple(new))
    if list(old) == list(new):
        return None
    before, after = set(old), set(new)
    gone = [line for line in old if line not in after]
    come = [(n, line) for n, line in enumerate(new, 1) if line not in before]
    unique = len(before) == len(old) and len(after) == len(new)
    same_order = [x for x in old if x in after] == [x for x in new if x in before]
    skip = len(f"-A {chain} ")
    unnameable = any(NATIVE_RULE in line or len(line) <= skip for line in gone)
    if unnameable or not unique or not same_order or len(gone) + len(come) > MAX_EDITS:
        return Edit(flush=True, lines=tuple(new))
    lines = [f"-D {chain} {line[skip:]}" for line in gone]
    lines += [f"-I {chain} {n} {line[skip:]}" for n, line in come]
    return Edit(flush=False, lines=tuple(lines))


def restore_text(
    table: str, *, declare: Iterable[str], rules: Iterable[str], delete: Iterable[str] = ()
) -> bytes:
    """One table's input: chains to create or empty, commands in order, chains to delete at the end."""
    doomed = sorted(delete)
    chains = sorted({*declare, *doomed})
    parts = [f"*{table}\n"]
    parts += [f":{chain} - [0:0]\n" for chain in chains]
    parts += rules
    parts += [f"-X {chain}\n" for chain in doomed]
    parts.append("COMMIT\n")
    return "".join(parts).encode()
