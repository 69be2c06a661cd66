"""Chain names: those of kube-proxy, so that dashboards and debugging tools keep working.

The hash is the first 16 characters of base32(sha256(service port name + protocol [+ endpoint])), without any
separator (pkg/proxy/iptables/proxier.go).
"""

from kproxy.backends.core.hashes import digest

LAYOUTS = ("auto", "standard", "scalable")
"""The layouts that --iptables-layout accepts; layout_selection.py says what `auto` does."""

ChainId = tuple[str, str]
"""(table, chain)."""

KUBE_SERVICES = "KUBE-SERVICES"
KUBE_EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
KUBE_NODEPORTS = "KUBE-NODEPORTS"
KUBE_FORWARD = "KUBE-FORWARD"
KUBE_PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
KUBE_POSTROUTING = "KUBE-POSTROUTING"
KUBE_MARK_MASQ = "KUBE-MARK-MASQ"
KUBE_FIREWALL = "KUBE-FIREWALL"
CANARY = "KUBE-PROXY-CANARY"

KUBE_IPVS_SERVICES = "KUBE-IPVS-SERVICES"
KUBE_IPVS_LOCAL = "KUBE-IPVS-LOCAL"
KUBE_IPVS_SHORTCUT = "KUBE-IPVS-SHORTCUT"
KUBE_IPVS_FILTER = "KUBE-IPVS-FILTER"
KUBE_IPVS_MISSED = "KUBE-IPVS-MISSED"
KUBE_IPVS_FORWARD = "KUBE-IPVS-FORWARD"
KUBE_IPVS_OWN = "KUBE-IPVS-OWN"

POLICY_INPUT = ("cali-INPUT", "KUBE-ROUTER-INPUT", "CILIUM_INPUT")
POLICY_OUTPUT = ("cali-OUTPUT", "KUBE-ROUTER-OUTPUT", "CILIUM_OUTPUT")
"""Chains of network policy engines: they filter before packets enter virtual servers or leave them."""

KUBE_PROXY_IPVS_NAT = ("KUBE-LOAD-BALANCER", "KUBE-NODE-PORT")
KUBE_PROXY_IPVS_FILTER = ("KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-OUT-FILTER")
"""Further chains of kube-proxy's own IPVS mode (pkg/proxy/ipvs/proxier.go)."""

PROBE = "KPROXY-PROBE"
"""The chain in which rules are probed: no rule jumps to it, and the probe deletes it."""

CLUSTER_POLICY = "KUBE-SVC-"
LOCAL_POLICY = "KUBE-SVL-"
EXTERNAL = "KUBE-EXT-"
FIREWALL = "KUBE-FW-"
ENDPOINT = "KUBE-SEP-"

SERVICE_CHAIN_PREFIXES = (FIREWALL, EXTERNAL, LOCAL_POLICY, CLUSTER_POLICY, ENDPOINT)
"""Prefixes of chains that belong to one service; a chain only jumps to chains of later prefixes."""

DISPATCH = "KUBE-AT-"
NODE_PORT_DISPATCH = "KUBE-NP-"
EXTERNAL_DISPATCH = "KUBE-XT-"
FIREWALL_DISPATCH = "KUBE-FD-"

DISPATCH_PREFIXES: dict[str, tuple[str, ...]] = {
    "nat": (DISPATCH, NODE_PORT_DISPATCH),
    "filter": (DISPATCH, NODE_PORT_DISPATCH, EXTERNAL_DISPATCH, FIREWALL_DISPATCH),
    "mangle": (),
}
"""By table, prefixes of the chains that dispatch to services in the scalable layout."""

INVALID_COUNTER = "ct_state_invalid_dropped_pkts"
LOCALHOST_COUNTER = "localhost_nps_accepted_pkts"
"""Accounting objects of nfacct that rules count into (pkg/proxy/metrics/metrics.go)."""

LONGEST_CHAIN_NAME = 28
"""Bytes (XT_EXTENSION_MAXNAMELEN in linux/netfilter/x_tables.h, less the end mark)."""

KUBELET_HINTS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
"""Chains of the kubelet in table mangle; where they are, it owns KUBE-FIREWALL and KUBE-MARK-MASQ too."""


def endpoint_chain(port_name: str, protocol: str, endpoint: str) -> str:
    """The chain of one endpoint (`ip:port` or `[ip]:port`) of a service port."""
    return ENDPOINT + digest(port_name + protocol + endpoint)


def referrers_first(chain: str) -> tuple[int, str]:
    """Sort key of service chains: referring chains first, so that they can be deleted in batches."""
    ranks = (n for n, prefix in enumerate(SERVICE_CHAIN_PREFIXES) if chain.startswith(prefix))
    return next(ranks, 0), chain
