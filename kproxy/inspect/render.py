"""What kproxy would do, worked out from manifests alone: the same planning and rendering, no kernel."""

from kproxy.addresses import Family
from kproxy.backends.iptables.layout_selection import layouts, select_layout
from kproxy.backends.iptables.text import render_text as render_iptables
from kproxy.backends.ipvs.text import render_text as render_ipvs
from kproxy.backends.nftables.text import render_text as render_nftables
from kproxy.config.model import ConfigError, ProxyConfig, validate
from kproxy.modes.iptables import Capabilities, iptables_config
from kproxy.modes.ipvs import ipvs_config
from kproxy.modes.nftables import nftables_config
from kproxy.node.facts import api_addresses, node_facts
from kproxy.plan.planner import Planner
from kproxy.sources.manifests import load_manifests
from kproxy.state.problems import Problem
from kproxy.state.tables import Tables
from kproxy.state.wire import Node


def render_manifests(config: ProxyConfig, family: Family) -> tuple[str, tuple[Problem, ...]]:
    """All that a kernel would be given for one family, and everything that is wrong with the objects.

    The kernel is assumed to be able to do everything that rules can ask for, except nfacct counters.
    Raises ConfigError.
    """
    validate(config)
    if config.manifests is None:
        raise ConfigError(["--manifests is needed"])
    loaded = load_manifests(config.manifests)
    tables = Tables()
    for kind, objects in loaded.objects.items():
        tables.replace(kind, [obj for obj in objects if kind.wants(obj.key, config.node_name)])
    facts = node_facts(config, tables.node, addresses_of(tables.node), tables.service_ranges)
    if facts is None:
        raise ConfigError([f"--detect-local-mode NodeCIDR: no Node {config.node_name} with podCIDRs found"])
    of_family = facts.families[family]
    planner = Planner(family)
    plans = planner.update(tables.dirty(), facts.view)
    rules = iptables_config(config, family, of_family, Capabilities(config.iptables_layout))
    if config.proxy_mode == "nftables":
        text = render_nftables(plans.values(), nftables_config(config, family, of_family))
    elif config.proxy_mode == "ipvs":
        text = render_ipvs(plans.values(), ipvs_config(config, rules, of_family))
    else:
        usual, larger = layouts(rules, config.iptables_layout)
        size = sum(1 + port.endpoints for plan in plans.values() for port in plan.ports)
        text = render_iptables(plans.values(), select_layout(usual, larger, size))
    problems = dict.fromkeys((*loaded.problems, *(p for plan in plans.values() for p in plan.problems)))
    return text, tuple(problems)


def addresses_of(node: Node | None) -> list[str]:
    """The node's addresses as far as the API knows them; in IPVS mode they accept node ports."""
    return sorted(set(api_addresses(node)))
