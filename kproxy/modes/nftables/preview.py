"""Output of `kproxy render` and `kproxy diff` for nftables mode, and for tables that another mode removes.

The desired table is created in a temporary network namespace, so that the same kernel prints the existing
and the desired rules.
"""

from collections.abc import Collection, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.backends.nftables.comparison import changes
from kproxy.backends.nftables.names import TABLE
from kproxy.backends.nftables.text import render_text
from kproxy.config.model import ProxyConfig
from kproxy.config.modes import traits_of
from kproxy.kernel import nft_tables
from kproxy.kernel.nft.commands import TABLE_FAMILY
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import NftError, Reading
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.modes.base import Preview, PreviewError
from kproxy.modes.nftables.mode import nftables_config
from kproxy.node.facts import FamilyFacts, NodeFacts
from kproxy.plan.model import ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput


def render(config: ProxyConfig, family: Family, facts: FamilyFacts, plans: Collection[ServicePlan]) -> str:
    """The table of a family."""
    return render_text(plans, nftables_config(config, family, facts))


def preview(config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts) -> Preview:
    """Compare the existing table with the desired one. Raises PreviewError."""
    try:
        return _compare_tables(config, inputs, facts)
    except (NftError, ScratchUnavailable, ValueError) as error:
        raise PreviewError(f"--proxy-mode nftables: {error}") from error


def preview_leftovers(config: ProxyConfig, found: Preview) -> Preview:
    """Add the tables, which another mode would remove, unless it has them too. Raises NftablesError."""
    if traits_of(config.proxy_mode).writes_table:
        return found
    gone = (
        Change(f"table {TABLE_FAMILY[family]} {TABLE}", Sign.REMOVE)
        for family in Family
        if TABLE in nft_tables.tables(family)
    )
    return msgspec.structs.replace(found, others=(*found.others, *gone))


def _compare_tables(config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts) -> Preview:
    """Compare the existing table with the desired one. Raises NftError, ScratchUnavailable, ValueError."""
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
    return Preview(tables, failed=failed, problems=tuple(problems))
