"""Configuration of the table of network policies of one family."""

import enum

import msgspec

from kproxy.addresses import Family


class Unknown(enum.StrEnum):
    """What happens to packets of an address in this node's pod ranges that is no known local pod.

    HOLD: a program holds them until the pod is known (`queue`).
    """

    ALLOW = "allow"
    DROP = "drop"
    HOLD = "hold"


QUEUE = 1071
"""The number of the queue for packets of unknown pods."""


class PolicyConfig(msgspec.Struct, frozen=True):
    """Settings of one family.

    `reject`: refused packets are answered with an error instead of silence. `pod_cidrs`: this node's pod
    ranges, canonical, of any family. `nflog_group`: to which refused flows are reported. `queue`: the number
    of the queue that holds packets; `queue_by_target`: by a target of iptables, where the kernel cannot do it
    otherwise.
    """

    family: Family
    reject: bool = False
    unknown: Unknown = Unknown.ALLOW
    pod_cidrs: tuple[str, ...] = ()
    nflog_group: int = 1071
    queue: int = QUEUE
    queue_by_target: bool = False

    @property
    def ip(self) -> str:
        """The family's name in nftables, of tables and of header expressions alike: `ip` or `ip6`."""
        return "ip" if self.family is Family.IPV4 else "ip6"

    @property
    def ranges(self) -> tuple[str, ...]:
        """Those pod ranges of the family in which unknown addresses are looked for."""
        if self.unknown is Unknown.ALLOW:
            return ()
        return tuple(cidr for cidr in self.pod_cidrs if (":" in cidr) == (self.family is Family.IPV6))
