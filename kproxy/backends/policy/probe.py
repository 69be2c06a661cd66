"""Probe whether this kernel can enforce network policies, before anything is written."""

import msgspec

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.backends.policy.change import whole_script
from kproxy.backends.policy.config import PolicyConfig, Unknown
from kproxy.backends.policy.desired import DesiredTable
from kproxy.backends.policy.script import Script
from kproxy.backends.policy.text import everything
from kproxy.kernel.nft.types import Nft, NftError, NftFailure
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, Group, PeerMatch, PolicyTable, PortMatch, RuleMatch


def probe(nft: Nft, family: Family) -> None:
    """Make the whole layout in a table of its own, and delete it in the same transaction. Raises NftError."""
    for reject in (False, True):
        config = PolicyConfig(family, reject=reject, unknown=Unknown.DROP, pod_cidrs=_CIDRS)
        _try(nft, config)


def holding(nft: Nft, config: PolicyConfig) -> PolicyConfig | None:
    """Return the settings with which this kernel can hold packets of unknown pods; None if it cannot.

    Raises NftError for other failures than a refusal.
    """
    for by_target in (False, True):
        chosen = msgspec.structs.replace(config, queue_by_target=by_target)
        tried = msgspec.structs.replace(chosen, unknown=Unknown.HOLD, pod_cidrs=_CIDRS)
        try:
            _try(nft, tried)
        except NftError as error:
            if error.kind is not NftFailure.REFUSED:
                raise
        else:
            return chosen
    return None


_CIDRS = ("192.0.2.0/26", "2001:db8::/65")


def _try(nft: Nft, config: PolicyConfig) -> None:
    desired = DesiredTable(config)
    table = _example(config.family)
    desired.update(table, everything(table))
    removal = Script(config.family, f"{names.TABLE}-probe")
    removal.remove_table()
    made = whole_script(desired, config.family, f"{names.TABLE}-probe").transaction()
    commands = (*removal.transaction().commands, *made.commands, *removal.transaction().commands)
    nft.commit(msgspec.structs.replace(made, commands=commands))


def _example(family: Family) -> PolicyTable:
    """A table with everything that policies can need."""
    ip = "192.0.2.1" if family is Family.IPV4 else "2001:db8::1"
    block = "192.0.2.128/25" if family is Family.IPV4 else "2001:db8:1::/48"
    many = PortMatch(Protocol.TCP, ((80, 80), (443, 450)))
    one = PortMatch(Protocol.SCTP, ((9, 9),))
    named = PortMatch(Protocol.UDP, (), "dns")
    peers = (PeerMatch(pods="p-probe"), PeerMatch(ranges="c-probe"))
    found = PolicyTable(
        peers={"p-probe": {ip}},
        named={"n-probe": {(ip, 53)}},
        named_protocols={"n-probe": ("dns", Protocol.UDP)},
        ranges={"c-probe": (block,)},
        local={ip: "probe/probe"},
    )
    for direction, ports in ((Direction.EGRESS, (many, one, named)), (Direction.INGRESS, (many, one))):
        name = f"{direction.value[0]}-probe"
        rules = (RuleMatch(ports, peers), RuleMatch((PortMatch(Protocol.UDP),)))
        found.groups[name] = Group(name, direction, ("probe/probe",), rules)
        found.isolated[direction][ip] = name
    return found
