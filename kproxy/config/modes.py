"""The traits of each proxy mode that determine how settings and facts of the node are read for it.

They are a layer below the modes themselves (kproxy/modes), because the settings and the node are read before
a mode is made. No other module of `config` or `node` names a mode.
"""

import msgspec


class ModeTraits(msgspec.Struct, frozen=True, kw_only=True):
    """How one mode reads the settings, and which facts of the node it needs.

    `section` and `masquerade_section` are fields of KubeProxyConfiguration: the first has the sync periods,
    the second the masquerade settings. `writes_iptables`: the mode writes rules with iptables programs, so
    that the variant matters. `programs_addresses`: it programs node ports at each address of the node.
    `holds_addresses`: it gives the node the addresses of services. `obeys_service_cidrs`: it reads
    ServiceCIDRs. `primary_by_default`: without --nodeport-addresses node ports answer at the node's primary
    addresses. `serves_loopback`: node ports can answer at 127.0.0.1. `own`: kube-proxy has no such mode, so
    that its document cannot name it. `writes_table`: the mode's rules are in the nftables table kproxy.
    """

    name: str
    section: str
    masquerade_section: str
    writes_iptables: bool = False
    programs_addresses: bool = False
    holds_addresses: bool = False
    obeys_service_cidrs: bool = False
    primary_by_default: bool = False
    serves_loopback: bool = False
    own: bool = False
    writes_table: bool = False


TRAITS = (
    ModeTraits(
        name="iptables",
        section="iptables",
        masquerade_section="iptables",
        writes_iptables=True,
        serves_loopback=True,
    ),
    ModeTraits(
        name="ipvs",
        section="ipvs",
        masquerade_section="iptables",
        writes_iptables=True,
        programs_addresses=True,
        holds_addresses=True,
    ),
    ModeTraits(
        name="nftables",
        section="nftables",
        masquerade_section="nftables",
        programs_addresses=True,
        obeys_service_cidrs=True,
        primary_by_default=True,
        writes_table=True,
    ),
    ModeTraits(
        name="ebpf",
        section="nftables",
        masquerade_section="nftables",
        programs_addresses=True,
        obeys_service_cidrs=True,
        primary_by_default=True,
        own=True,
        writes_table=True,
    ),
)
"""Every mode; the first one is the default. kube-proxy reads the same sections (cmd/kube-proxy/app)."""

DEFAULT_MODE = TRAITS[0].name


def mode_names() -> tuple[str, ...]:
    """The values of --proxy-mode."""
    return tuple(traits.name for traits in TRAITS)


def kube_proxy_modes() -> tuple[str, ...]:
    """The modes that kube-proxy has too: the values of `mode` of its document."""
    return tuple(traits.name for traits in TRAITS if not traits.own)


def traits_of(mode: str) -> ModeTraits:
    """The traits of a mode by its name. Raises ValueError if there is no such mode."""
    for traits in TRAITS:
        if traits.name == mode:
            return traits
    raise ValueError(f"no proxy mode {mode!r}")
