"""Compute the changes of the next sync on this node: run the real backends on a dry run of its kernel.

Everything is read as by `kproxy run`: objects once from their source; rules, sets and virtual servers from
the kernel or from a saved dump. Then the first sync of a new kproxy runs in memory. Capabilities of the
kernel are probed in a temporary network namespace.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign
from kproxy.backends.ipvs.handles import KERNEL_ERRORS
from kproxy.backends.ipvs.names import DEVICE
from kproxy.config.model import ConfigError, ProxyConfig, validate
from kproxy.inspect.objects import facts_of, read_objects, recorded_addresses
from kproxy.inspect.policies import preview_policies, preview_removal
from kproxy.inspect.render import addresses_of
from kproxy.inspect.sysctls import current_sysctls
from kproxy.kernel import links
from kproxy.kernel.nft_tables import NftablesError
from kproxy.kernel.xtables.types import RestoreError
from kproxy.modes.base import ModeRegistry, ModeSpec, Preview, PreviewError
from kproxy.node.facts import NodeFacts
from kproxy.state.tables import Tables
from kproxy.text import clean

_LONGEST_LINE = 1 << 16
"""The maximum length of a line; session affinity over many endpoints has the longest rules."""


class Difference(msgspec.Struct, frozen=True):
    """All changes of the next sync.

    `rules` are chains and rules of built-in chains by family; `others` all other objects. `failed` maps
    services that could not be programmed to reasons; `problems` lists the defects of objects.
    """

    rules: Mapping[Family, tuple[Change, ...]]
    others: tuple[Change, ...] = ()
    failed: Mapping[str, str] = {}
    problems: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not self.others and not any(self.rules.values())

    def lines(self) -> Iterator[str]:
        """Yield a line for each object."""
        for family, changes in self.rules.items():
            for change in changes:
                line = f"{change.sign} {family} {str(change).removeprefix(change.sign + ' ')}"
                yield clean(line, _LONGEST_LINE)
        yield from (clean(str(change), _LONGEST_LINE) for change in self.others)

    def json(self) -> bytes:
        """The same as JSON: `changes` with family (of rules), sign, object, detail; failed; problems."""
        changes = [
            {"family": family, **msgspec.structs.asdict(change)}
            for family, found in self.rules.items()
            for change in found
        ]
        changes += [msgspec.structs.asdict(change) for change in self.others]
        found = {"changes": changes, "failed": self.failed, "problems": self.problems}
        return msgspec.json.format(msgspec.json.encode(found), indent=2)


def of_this_node(config: ProxyConfig, modes: ModeRegistry) -> Difference:
    """Compare with this node's kernel.

    Raises ConfigError, PreviewError, and the errors of the source: OSError, ClusterAccessError, ApiError.
    """
    validate(config)
    tables, problems, servers = read_objects(config)
    interfaces = recorded_addresses(config) or addresses_here()
    facts = facts_of(config, tables, interfaces, servers)
    spec = modes.spec(config)
    try:
        found = spec.preview(config, tables.dirty(), facts)
        for other in modes.others(config):
            found = other.preview_leftovers(config, found)
        found = _with_policies(config, tables, found)
    except (RestoreError, NftablesError, ValueError, *KERNEL_ERRORS) as error:
        raise PreviewError(f"the kernel cannot be read: {error}") from error
    return _with_sysctls(config, spec, facts, _difference(found, problems))


def addresses_here() -> tuple[str, ...]:
    """The addresses of this host, without those that IPVS mode assigns. Raises OSError."""
    return links.local_addresses(exclude={DEVICE})


def of_dump(config: ProxyConfig, file: Path, family: Family, modes: ModeRegistry) -> Difference:
    """Compare with the rules in a file that iptables-save or ip6tables-save printed.

    The kernel's capabilities are derived from the rules in the dump; node addresses are those of the Node.
    Raises the same errors as of_this_node.
    """
    validate(config)
    preview = modes.spec(config).preview_dump
    if preview is None:
        able = " or ".join(modes.with_dumps())
        raise ConfigError([f"--against: only for --proxy-mode {able}, not {config.proxy_mode}"])
    tables, problems, servers = read_objects(config)
    facts = facts_of(config, tables, addresses_of(tables.node), servers)
    if config.network_policy:
        problems = (*problems, "--against: the tables of NetworkPolicies are not in such a dump")
    dump = file.read_bytes()
    try:
        found = preview(config, tables.dirty(), facts, dump, family)
    except ValueError as error:
        raise PreviewError(f"{file}: {error}") from error
    return _difference(found, problems)


def _difference(found: Preview, problems: tuple[str, ...]) -> Difference:
    return Difference(found.rules, found.others, found.failed, (*problems, *found.problems))


def _with_policies(config: ProxyConfig, tables: Tables, found: Preview) -> Preview:
    """Add the changes of the tables of NetworkPolicies. Raises PreviewError."""
    if not config.network_policy:
        return msgspec.structs.replace(found, others=(*found.others, *preview_removal()))
    policies = preview_policies(config, tables)
    return msgspec.structs.replace(
        found,
        rules={family: (*found.rules.get(family, ()), *policies.changes[family]) for family in Family},
        failed={**found.failed, **policies.failed},
        problems=(*found.problems, *map(str, policies.problems)),
    )


def _with_sysctls(config: ProxyConfig, spec: ModeSpec, facts: NodeFacts, found: Difference) -> Difference:
    """Add the kernel parameters that a start would set, and a problem for each that it cannot set."""
    localhost = facts.families[Family.IPV4].localhost_node_ports
    sysctls = current_sysctls(config, tuple(Family), spec, localhost=localhost)
    wrong = [each for each in sysctls if each.sets and not each.right]
    changes = [
        Change(f"sysctl {each.name}", Sign.CHANGE, f"{each.now} -> {each.wanted}")
        for each in wrong
        if each.writable
    ]
    problems = [
        f"sysctl {each.name}: {each.deviation} and cannot be set here; {each.command}"
        for each in wrong
        if not each.writable and each.now is not None
    ]
    return msgspec.structs.replace(
        found, others=(*found.others, *changes), problems=(*found.problems, *problems)
    )
