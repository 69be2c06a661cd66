"""What kproxy would do, worked out from manifests alone: the same planning and rendering, no kernel."""

from kproxy.addresses import Family
from kproxy.agent.config import ConfigError, ProxyConfig, validate
from kproxy.agent.node import node_facts
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import StandardLayout
from kproxy.backends.iptables.text import render_text
from kproxy.plan.planner import Planner
from kproxy.sources.manifests import load_manifests
from kproxy.state.decode import Kind
from kproxy.state.problems import Problem
from kproxy.state.tables import Tables
from kproxy.state.wire import Node


def render_manifests(config: ProxyConfig, family: Family) -> tuple[str, tuple[Problem, ...]]:
    """The complete restore input of one family, and everything that is wrong with the objects.

    The kernel is assumed to be able to do everything that rules can ask for, except nfacct counters.
    Raises ConfigError.
    """
    validate(config)
    if config.manifests is None:
        raise ConfigError(["--manifests is needed"])
    loaded = load_manifests(config.manifests)
    tables = Tables()
    for kind in Kind:
        tables.replace(kind, [obj for obj in loaded.objects[kind] if _is_relevant(obj, config)])
    facts = node_facts(config, tables.node, ())
    if facts is None:
        raise ConfigError([f"--detect-local-mode NodeCIDR: no Node {config.node_name} with podCIDRs found"])
    of_family = facts.families[family]
    planner = Planner(family)
    plans = planner.update(tables.dirty(), facts.view)
    text = render_text(
        plans.values(),
        StandardLayout(
            IptablesConfig(
                family=family,
                masquerade_bit=config.masquerade_bit,
                masquerade_all=config.masquerade_all,
                local_traffic=of_family.local_traffic,
                localhost_node_ports=of_family.localhost_node_ports,
                node_port_addresses=of_family.node_port_addresses,
            )
        ),
    )
    problems = dict.fromkeys((*loaded.problems, *(p for plan in plans.values() for p in plan.problems)))
    return text, tuple(problems)


def _is_relevant(obj: object, config: ProxyConfig) -> bool:
    return not isinstance(obj, Node) or obj.metadata.name == config.node_name
