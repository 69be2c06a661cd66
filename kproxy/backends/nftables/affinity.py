"""Session affinity: a set of clients for each service port, and a chain that leads them to endpoints."""

import hashlib
from collections.abc import Sequence

import msgspec

from kproxy.addresses import Family, join_host_port
from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import Chain
from kproxy.plan.model import EndpointPlan, PortPlan


class Target(msgspec.Struct, frozen=True):
    """An endpoint in the rules of an affinity chain; `number` stands for it in the affinity set."""

    ip: str
    port: int
    weight: int
    number: int


def sticky(
    family: Family,
    digest: str,
    protocol: int,
    targets: Sequence[Target],
    seconds: int,
    idle: Sequence[int] = (),
) -> Chain:
    """Return the rules of an affinity chain: known clients go to their endpoint, others are added to the set.

    `digest`: of the service port, whose set it is. `idle` are the numbers of endpoints that cannot be chosen
    now. Their clients are deleted from the set, so that they keep their new endpoint when the old one is
    available again, as with kube-proxy.

    nft 1.0 rejects a look-up of a concatenation with a constant, but accepts a number generator of one value.
    If the set is full, the last rule balances without affinity.
    """
    ip = "ip" if family is Family.IPV4 else "ip6"
    clients = names.affinity(digest)

    def key(number: int) -> str:
        return f"{ip} saddr . numgen inc mod 1 offset {number}"

    def remember(target: Target) -> str:
        return (
            f"update @{clients} {{ {key(target.number)} timeout {seconds}s }} "
            f"meta l4proto {protocol} dnat {ip} to {join_host_port(target.ip, target.port)}"
        )

    rules = [f"delete @{clients} {{ {key(number)} }}" for number in idle]
    rules += [f"{key(target.number)} @{clients} {remember(target)}" for target in targets]
    left = sum(target.weight for target in targets)
    for target in targets:
        share = f"numgen random mod {left} < {target.weight} " if left > target.weight else ""
        rules.append(share + remember(target))
        left -= target.weight
    spread = ", ".join(f"{n} : {target.ip} . {target.port}" for n, target in enumerate(targets))
    rules.append(f"meta l4proto {protocol} dnat {ip} to numgen random mod {len(targets)} map {{ {spread} }}")
    return tuple(rules)


def remembered_as(port: PortPlan, created: str, endpoint: EndpointPlan) -> int:
    """The 31-bit number that stands for one endpoint of a port in the affinity set.

    Entries expire with their timeout, not with their service; so a new service of the same name, which its
    `created` time distinguishes, has other numbers.
    """
    text = f"{port.name} {created} {port.protocol} {endpoint.address_port}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
