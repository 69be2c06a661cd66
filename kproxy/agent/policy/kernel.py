"""What the enforcement of NetworkPolicies does in the kernel of this node, and whether that kernel can.

It is the same in every proxy mode: one nftables table per family beside whatever the mode writes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import Drift, SyncReport
from kproxy.backends.core.foreign_writes import ForeignWrites, RulesetWatches
from kproxy.backends.policy.backend import PolicyBackend
from kproxy.backends.policy.config import PolicyConfig
from kproxy.backends.policy.ended import refuse_answers
from kproxy.backends.policy.probe import probe
from kproxy.kernel.conntrack.connections import Connection
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.remedies import remedy
from kproxy.kernel.nft.types import Nft, NftError
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import ModeUnavailable
from kproxy.node.policy_settings import able
from kproxy.node.policy_table import remove_policy_tables
from kproxy.plan.policy.model import PolicyTable, Touched

log = structlog.stdlib.get_logger(__name__)

_IPV6 = Path("/proc/sys/net/ipv6")


class PolicyUnavailable(ModeUnavailable):
    """NetworkPolicies cannot be enforced on this node; the message gives the reason and a remedy."""


class Enforcer(Protocol):
    """The policies of one family in the kernel; see kproxy.backends.core.base.Backend."""

    on_progress: Callable[[], None]
    gives_way: Callable[[], bool]

    def update(self, table: PolicyTable, touched: Touched) -> None:
        """Take what changed in the desired table."""

    def reconfigure(self, config: PolicyConfig) -> None:
        """Use other settings from the next sync on."""

    def sync(self, budget: float | None = None) -> SyncReport:
        """Bring the kernel to the desired table."""

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with what was applied."""

    def invalidate(self) -> None:
        """Read the kernel in the next sync."""

    def retry(self) -> None:
        """Try what was refused again in the next sync."""

    def run_timers(self) -> float | None:
        """Run due periodic work; return the seconds until the next call, or None."""


class PolicyKernel(Protocol):
    """The kernel's part, for tests too."""

    def usable(self) -> tuple[Family, ...]:
        """The families whose policies can be enforced. Raises PolicyUnavailable where one is missing."""

    def able(self, config: PolicyConfig) -> PolicyConfig:
        """The settings as far as this kernel can obey them; what it cannot is logged."""

    def enforcer(self, config: PolicyConfig) -> Enforcer:
        """Make the enforcer of a family; a table of a former process stays until its first sync."""

    def writing(self) -> AbstractContextManager[None]:
        """Surround one transaction on another table; see ForeignWrites.writing."""

    def refuse_answers(self, family: Family, connections: Sequence[Connection]) -> None:
        """Refuse what the servers of ended connections send. Called from any thread. Raises NftError."""

    def remove(self) -> bool:
        """Remove the tables of both families; False if that failed, which is logged."""


class NftPolicyKernel:
    """The kernel of this network namespace. `watches` are shared with the mode, which may write to it too."""

    def __init__(self, watches: RulesetWatches, nft: Nft | None = None) -> None:
        self._nft = nft or NetlinkNft()
        self._watch = watches.setdefault(Variant.NFT, ForeignWrites(self._nft.generation))

    def usable(self) -> tuple[Family, ...]:
        """Try the whole layout for each family. A kernel without IPv6 has no IPv6 traffic to refuse."""
        found = []
        for family in Family:
            try:
                probe(self._nft, family)
            except NftError as error:
                if family is Family.IPV6 and not _IPV6.exists():
                    log.warning("policy_family_unusable", family=family.value, reason=error.message)
                    continue
                raise PolicyUnavailable(
                    f"--network-policy: policies of {family} cannot be enforced: {error.message}; "
                    f"{remedy(error)}, or turn --network-policy off"
                ) from error
            found.append(family)
        return tuple(found)

    def able(self, config: PolicyConfig) -> PolicyConfig:
        """Choose how packets of unknown pods are held; where the kernel cannot, they are dropped."""
        return able(self._nft, config)

    def enforcer(self, config: PolicyConfig) -> Enforcer:
        """Make the enforcer of a family."""
        return PolicyBackend(config, self._nft, self._watch)

    def writing(self) -> AbstractContextManager[None]:
        """See ForeignWrites.writing."""
        return self._watch.writing()

    def refuse_answers(self, family: Family, connections: Sequence[Connection]) -> None:
        """Add their answers to the table. Raises NftError."""
        with self._watch.writing():
            NetlinkNft().commit(refuse_answers(family, connections))

    def remove(self) -> bool:
        """Remove the tables of both families."""
        return remove_policy_tables()
