"""Loops of chains in a section of a restore input, which the kernel refuses."""

from kproxy.backends.iptables.memory_section import VERDICTS, RefusedError, Section
from kproxy.backends.iptables.memory_table import target_of
from kproxy.kernel.xtables.types import Variant


def refuse_loops(section: Section, variant: Variant) -> None:
    """Find loops as the kernel does: only those reachable from built-in chains. Raises RefusedError."""
    built_in = set(section.table.policies)
    if _has_loop(section, section.jumped, variant) and _has_loop(section, built_in, variant):
        raise RefusedError("RULE_APPEND failed (Too many links)")


def _has_loop(section: Section, roots: set[str], variant: Variant) -> bool:
    done: set[str] = set()
    for root in roots:
        if root in done:
            continue
        path = {root}
        stack = [(root, _targets(section, root, variant))]
        while stack:
            chain, targets = stack[-1]
            if not targets:
                stack.pop()
                path.discard(chain)
                done.add(chain)
                continue
            target = targets.pop()
            if target in path:
                return True
            if target not in done:
                path.add(target)
                stack.append((target, _targets(section, target, variant)))
    return False


def _targets(section: Section, chain: str, variant: Variant) -> list[str]:
    rules = section.rules(chain) or []
    if variant is Variant.LEGACY:
        # x_tables does not look past a rule that always decides (mark_source_chains)
        final = [rules.index(f"-A {chain} -j {v}") for v in VERDICTS if f"-A {chain} -j {v}" in rules]
        rules = rules[: min(final, default=len(rules))]
    found = {target_of(rule) for rule in rules}
    return [name for name in found if name is not None and section.rules(name) is not None]
