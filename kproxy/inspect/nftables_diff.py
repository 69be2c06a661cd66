"""What the next sync would change where nftables is the mode, or was.

The whole table is made in a network namespace that ends with it, so that the same kernel prints the rules
that stand and those that are wanted.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.cleanup import cleanup
from kproxy.backends.iptables.dryrun import DryRunXtables
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.backends.nftables.comparison import changes
from kproxy.backends.nftables.names import TABLE
from kproxy.config.model import ProxyConfig
from kproxy.kernel import nft_tables
from kproxy.kernel.nft.commands import TABLE_FAMILY
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import Reading
from kproxy.kernel.scratch import in_scratch_network
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, XtablesUnavailable
from kproxy.modes.nftables import nftables_config
from kproxy.node.facts import NodeFacts
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput


class TableChanges(msgspec.Struct, frozen=True):
    """What would change in each family's table; `failed` services have a reason each."""

    tables: Mapping[Family, tuple[Change, ...]]
    failed: Mapping[str, str]
    problems: tuple[str, ...]


def compare_tables(config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts) -> TableChanges:
    """Compare what stands with what all services need. Raises NftError, ScratchUnavailable, ValueError."""
    nft = NetlinkNft()
    standing = {family: nft.reading(family, TABLE, portable=True) for family in Family}
    problems: dict[str, None] = {}
    failed: dict[str, str] = {}

    def desired() -> dict[Family, Reading]:
        found = {}
        for family in Family:
            settings = nftables_config(config, family, facts.families[family])
            backend = NftablesBackend(settings, nft, ForeignWrites(nft.generation))
            plans = Planner(family).update(inputs, facts.view)
            problems.update(dict.fromkeys(str(each) for plan in plans.values() for each in plan.problems))
            backend.update(plans.values())
            report = backend.sync()
            if report.error is not None:
                raise ValueError(f"{family}: {report.error}")
            failed.update(report.failed)
            read = nft.reading(family, TABLE, portable=True)
            found[family] = Reading({}, frozenset()) if read is None else read
        return found

    wanted = in_scratch_network(desired)
    tables = {
        family: tuple(sorted(changes(standing[family], wanted[family], f"{TABLE_FAMILY[family]} {TABLE}")))
        for family in Family
    }
    return TableChanges(tables, failed, tuple(problems))


def former_rules(family: Family, used: Variant | None = None) -> Iterator[Change]:
    """What would go of iptables rules of ours, in both variants but for the one that is `used`.

    Beside a used variant, which may have chains of the same names, each line says that it is the other; one
    that cannot be read is left alone, as it is by a sync. Raises RestoreError.
    """
    for variant in Variant:
        if variant is used:
            continue
        try:
            tools = find_tools(family, variant, probe=False)
        except XtablesUnavailable:
            continue
        try:
            dump = SubprocessXtables(family, tools).save()
        except RestoreError as error:
            if used is not None and error.kind is FailureKind.MISSING:
                continue
            raise
        dry_run = DryRunXtables(family, variant, dump)
        cleanup(dry_run)
        for change in sorted(dry_run.changes()):
            told = change.object if used is None else f"{variant} {change.object}"
            yield msgspec.structs.replace(change, object=told)


def former_tables() -> Iterator[Change]:
    """The tables of the nftables mode, which the other modes would take away. Raises NftablesError."""
    for family in Family:
        if TABLE in nft_tables.tables(family):
            yield Change(f"table {TABLE_FAMILY[family]} {TABLE}", Sign.REMOVE)
