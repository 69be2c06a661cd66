"""Read all objects once, as `kproxy run` does at its start, for commands that work without an agent."""

from collections.abc import Collection, Sequence

from kproxy.config.model import ConfigError, ProxyConfig
from kproxy.modes.kinds import kinds_of_files, needed_kinds
from kproxy.node.facts import NodeFacts, node_facts
from kproxy.sources.manifests import LoadedManifests, load_manifests
from kproxy.sources.replay import load_replay, open_recording
from kproxy.state.tables import Tables


def read_objects(config: ProxyConfig) -> tuple[Tables, tuple[str, ...], frozenset[tuple[str, int]]]:
    """The objects, their defects, and the addresses and ports of API servers.

    Raises the errors of the source: OSError, ClusterAccessError, ApiError, ConfigError.
    """
    loaded = _objects(config)
    tables = Tables()
    for kind, objects in loaded.objects.items():
        tables.replace(kind, [obj for obj in objects if kind.wants(obj.key, config.node_name)])
    return tables, tuple(str(problem) for problem in loaded.problems), loaded.api_servers


def facts_of(
    config: ProxyConfig, tables: Tables, interfaces: Sequence[str], servers: Collection[tuple[str, int]]
) -> NodeFacts:
    """The facts of the node with these addresses. Raises ConfigError if they depend on an unknown Node."""
    facts = node_facts(config, tables.node, interfaces, tables.service_ranges, servers)
    if facts is None:
        raise ConfigError([f"--detect-local-mode NodeCIDR: no Node {config.node_name} with podCIDRs found"])
    return facts


def recorded_addresses(config: ProxyConfig) -> tuple[str, ...] | None:
    """The addresses of the node's interfaces in the recording that is replayed, if they are known."""
    if config.replay is None:
        return None
    node = open_recording(config.replay, config.replay_until).node
    return None if node is None else node.addresses


def _objects(config: ProxyConfig) -> LoadedManifests:
    if config.replay is not None:
        return load_replay(config.replay, config.replay_until)
    if config.manifests is not None:
        return load_manifests(config.manifests, kinds=kinds_of_files(config))
    from kproxy.sources.cluster import ClusterAccess
    from kproxy.sources.list_once import list_once

    access = ClusterAccess(config.kubeconfig, master=config.master or None)
    return list_once(access, config.node_name, kinds=needed_kinds(config))
