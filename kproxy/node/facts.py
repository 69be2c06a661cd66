"""Facts of the node: its addresses, its zone, detection of local pods, addresses for node ports."""

from collections.abc import Collection, Iterable, Iterator

import msgspec

from kproxy.addresses import (
    Family,
    cidr_contains,
    collapse,
    host_cidr,
    is_link_local,
    is_loopback,
    parse_cidr,
    parse_ip,
    split_host_port,
)
from kproxy.backends.core.base import LocalTraffic
from kproxy.config.loopback import covers_loopback
from kproxy.config.model import LONGEST_INTERFACE, PRIMARY, ProxyConfig, cidrs_by_family
from kproxy.config.modes import traits_of
from kproxy.plan.model import NodeView, OutsideLimits
from kproxy.state.wire import Node

LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}


class FamilyFacts(msgspec.Struct, frozen=True):
    """The facts of the node that one family's backend needs.

    `node_port_addresses` is None if every local address accepts node ports. `localhost_node_ports` is the
    setting, but False if 127.0.0.0/8 is not among the node-port addresses. `local_addresses` are those of
    all interfaces, and `service_ranges` the cluster's service IP ranges, if the mode needs them.
    """

    local_traffic: LocalTraffic | None
    node_port_addresses: tuple[str, ...] | None
    localhost_node_ports: bool
    local_addresses: tuple[str, ...] = ()
    service_ranges: tuple[str, ...] = ()


class NodeFacts(msgspec.Struct, frozen=True):
    """Everything derived from the node, the settings and the interfaces."""

    view: NodeView
    families: dict[Family, FamilyFacts]

    def without_ranges(self) -> "NodeFacts":
        """The facts that services depend on: all except the service ranges."""
        bare = {
            family: msgspec.structs.replace(side, service_ranges=()) for family, side in self.families.items()
        }
        return NodeFacts(self.view, bare)


def node_facts(
    config: ProxyConfig,
    node: Node | None,
    interfaces: Iterable[str],
    service_cidrs: tuple[str, ...] = (),
    api_servers: Collection[tuple[str, int]] = (),
) -> NodeFacts | None:
    """Derive the facts; None while they cannot be known (NodeCIDR mode before the node has pod CIDRs).

    `interfaces` are the canonical addresses of all network interfaces of this host, `service_cidrs` the
    ranges of all ServiceCIDRs, `api_servers` the (address, port) of each API server.
    """
    traits = traits_of(config.proxy_mode)
    addresses = LOOPBACK | node_addresses(node) | _chosen_address(config)
    zone = node.metadata.labels.zone if node is not None and node.metadata.labels is not None else None
    local_addresses = tuple(interfaces)
    limits = OutsideLimits(
        external_ip_cidrs=tuple(parse_cidr(cidr)[1] for cidr in config.external_ip_cidrs),
        local=_own_addresses(node, local_addresses),
        listeners=frozenset(_listeners(config)),
        api_servers=frozenset(api_servers),
        holds_addresses=traits.holds_addresses,
    )
    view = NodeView(config.node_name, zone, addresses, config.external_ips, limits, config.limits)
    local = _local_traffic(config, node)
    if local is None:
        return None
    ranges = _node_port_ranges(config, addresses)
    obeyed = (config.service_cidrs or service_cidrs) if traits.obeys_service_cidrs else ()
    service_ranges = cidrs_by_family(obeyed)
    families = {
        family: FamilyFacts(
            local.get(family),
            _matching(ranges[family], local_addresses),
            config.localhost_node_ports and covers_loopback(ranges[Family.IPV4]),
            _of_family(family, local_addresses) if traits.programs_addresses else (),
            collapse(service_ranges[family]),
        )
        for family in Family
    }
    return NodeFacts(view, families)


def remembered(node: Node | None, before: Node | None) -> Node | None:
    """The node's object; missing addresses and pod CIDRs are filled in from the one `before`.

    If the object is gone, the one before stays, as in kube-proxy (pkg/proxy/node.go): Nodes are deleted and
    registered again while their pods run on, and a cloud's controller adds the addresses some time later.
    """
    if node is None or before is None:
        return node or before
    if not node_addresses(node):
        node = msgspec.structs.replace(node, status=before.status)
    if not pod_cidrs(node):
        node = msgspec.structs.replace(node, spec=before.spec)
    return node


def api_addresses(node: Node | None) -> Iterator[str]:
    """Every address of the Node in canonical form; invalid ones are left out."""
    for address in (node.status.addresses or ()) if node is not None and node.status is not None else ():
        try:
            yield parse_ip(address.address)[1]
        except ValueError:
            continue


def node_addresses(node: Node | None) -> dict[Family, str]:
    """The node's primary address per family: the first InternalIP, else the first ExternalIP."""
    found: dict[Family, str] = {}
    if node is None or node.status is None:
        return found
    for kind in ("InternalIP", "ExternalIP"):
        for address in node.status.addresses or ():
            if address.type != kind:
                continue
            try:
                family, ip = parse_ip(address.address)
            except ValueError:
                continue
            found.setdefault(family, ip)
    return found


def pod_cidrs(node: Node | None) -> tuple[str, ...]:
    """The node's pod CIDRs, unparsed."""
    spec = node.spec if node is not None else None
    if spec is None:
        return ()
    return spec.pod_cidrs or ((spec.pod_cidr,) if spec.pod_cidr else ())


def _own_addresses(node: Node | None, interfaces: Iterable[str]) -> frozenset[str]:
    """The node's addresses without loopback and link-local ones, which other hosts have too."""
    known = {*interfaces, *api_addresses(node)}
    return frozenset(ip for ip in known if not is_loopback(ip) and not is_link_local(ip))


def _listeners(config: ProxyConfig) -> Iterator[tuple[str, int]]:
    """The address and port of each listener of this process; "" stands for all addresses of both families."""
    for address in filter(None, (config.healthz_bind_address, config.metrics_bind_address)):
        host, port = split_host_port(address)
        try:
            ip = parse_ip(host)[1]
        except ValueError:
            ip = ""
        yield "" if ip in {"0.0.0.0", "::"} else ip, port  # noqa: S104


def _is_cidr(text: str) -> bool:
    try:
        parse_cidr(text)
    except ValueError:
        return False
    return True


def _chosen_address(config: ProxyConfig) -> dict[Family, str]:
    """The configured primary address of the node, unless it is 0.0.0.0 or ::."""
    family, ip = parse_ip(config.bind_address)
    return {} if ip in {"0.0.0.0", "::"} else {family: ip}  # noqa: S104


def wants_service_cidrs(config: ProxyConfig) -> bool:
    """Whether ServiceCIDRs are needed: the mode uses them, and no setting replaces them."""
    return traits_of(config.proxy_mode).obeys_service_cidrs and not config.service_cidrs


def _local_traffic(config: ProxyConfig, node: Node | None) -> dict[Family, LocalTraffic] | None:
    match config.detect_local_mode:
        case "BridgeInterface":
            return dict.fromkeys(Family, LocalTraffic(interface=config.pod_bridge_interface))
        case "InterfaceNamePrefix":
            return dict.fromkeys(
                Family, LocalTraffic(interface=_starting_with(config.pod_interface_name_prefix))
            )
        case "NodeCIDR":
            texts = tuple(text for text in pod_cidrs(node) if _is_cidr(text))
            if not texts:
                return None
        case _:
            texts = config.cluster_cidrs
    # As in kube-proxy, only the first CIDR of a family counts.
    return {family: LocalTraffic(cidr=cidrs[0]) for family, cidrs in cidrs_by_family(texts).items() if cidrs}


def _starting_with(prefix: str) -> str:
    """The interface match of iptables: at most 15 characters including the plus, as an interface's name."""
    return prefix if len(prefix) == LONGEST_INTERFACE else prefix + "+"


def _node_port_ranges(config: ProxyConfig, addresses: dict[Family, str]) -> dict[Family, list[str]]:
    by_default = traits_of(config.proxy_mode).primary_by_default and not config.node_port_addresses
    if by_default or config.node_port_addresses == (PRIMARY,):
        return {family: [host_cidr(addresses[family])] for family in Family}
    return cidrs_by_family(config.node_port_addresses)


def _matching(ranges: list[str], addresses: tuple[str, ...]) -> tuple[str, ...] | None:
    if not ranges or any(cidr.endswith("/0") for cidr in ranges):
        return None
    found = {a for a in addresses if any(cidr_contains(cidr, a) for cidr in ranges)}
    return tuple(sorted(found))


def _of_family(family: Family, addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(ip for ip in addresses if (":" in ip) == (family is Family.IPV6))
