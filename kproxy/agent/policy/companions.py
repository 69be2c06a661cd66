"""What runs beside the enforcement of NetworkPolicies, each on a thread of its own."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.plan.policy.model import PolicyTable, Touched

if TYPE_CHECKING:
    from kproxy.agent.policy.agent import PolicyAgent


class Companion(Protocol):
    """One of them. It exists once policies were first enforced, and pauses while they are not."""

    @property
    def name(self) -> str:
        """The name of its thread."""

    def follow(self, config: ProxyConfig) -> None:
        """Use other settings; with `network_policy` off, pause. Called from any thread."""

    def applied(self, family: Family, touched: Touched) -> None:
        """Note what was applied; called on the thread of the policies, so it must return at once."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and `wake` called."""

    def wake(self) -> None:
        """Wake `run`, so that it checks for the stop."""


@runtime_checkable
class FindsGaps(Protocol):
    """A companion that finds packets which no policy judges."""

    @property
    def gaps(self) -> tuple[str, ...]:
        """Which these are, and why, in words; may be called from any thread."""


@runtime_checkable
class Prepares(Protocol):
    """A companion with work that must be done before what was planned is applied."""

    def planned(self, family: Family, table: PolicyTable, touched: Touched) -> None:
        """Do it; called on the thread of the policies, which waits."""


def companions(agent: "PolicyAgent") -> Sequence[Companion]:
    """All of them, in the order in which they hear what was applied."""
    from kproxy.agent.policy.commit_watch import CommitWatch
    from kproxy.agent.policy.edges import edges

    return (CommitWatch(agent.config, agent.look), *edges(agent))
