"""Compute kproxy's rules from manifests or a recording: the same planning and rendering, without a kernel."""

from kproxy.addresses import Family
from kproxy.config.model import ConfigError, ProxyConfig, validate
from kproxy.inspect.policies import render_policies
from kproxy.modes.base import ModeRegistry
from kproxy.modes.kinds import kinds_of_files
from kproxy.node.facts import api_addresses, node_facts
from kproxy.plan.planner import Planner
from kproxy.sources.manifests import load_manifests
from kproxy.sources.replay import load_replay
from kproxy.state.problems import Problem
from kproxy.state.tables import Tables
from kproxy.state.wire import Node


def render_manifests(
    config: ProxyConfig, family: Family, modes: ModeRegistry
) -> tuple[str, tuple[Problem, ...]]:
    """Return all objects that a kernel would get for one family, and every defect of the API objects.

    The kernel is assumed to have every capability that rules can use, except nfacct counters.
    Raises ConfigError.
    """
    validate(config)
    if config.replay is not None:
        loaded = load_replay(config.replay, config.replay_until)
    elif config.manifests is not None:
        loaded = load_manifests(config.manifests, kinds=kinds_of_files(config))
    else:
        raise ConfigError(["--manifests is needed, or --replay"])
    tables = Tables()
    for kind, objects in loaded.objects.items():
        tables.replace(kind, [obj for obj in objects if kind.wants(obj.key, config.node_name)])
    addresses = addresses_of(tables.node) if loaded.addresses is None else loaded.addresses
    facts = node_facts(config, tables.node, addresses, tables.service_ranges, loaded.api_servers)
    if facts is None:
        raise ConfigError([f"--detect-local-mode NodeCIDR: no Node {config.node_name} with podCIDRs found"])
    of_family = facts.families[family]
    planner = Planner(family)
    plans = planner.update(tables.dirty(), facts.view)
    text = modes.spec(config).render(config, family, of_family, plans.values())
    problems = dict.fromkeys((*loaded.problems, *(p for plan in plans.values() for p in plan.problems)))
    if config.network_policy:
        policies, defects = render_policies(config, family, tables)
        text += f"# nft -f\n{policies}"
        problems |= dict.fromkeys(defects)
    return text, tuple(problems)


def addresses_of(node: Node | None) -> list[str]:
    """The node's addresses in the API; in IPVS mode they accept node ports."""
    return sorted(set(api_addresses(node)))
