"""One kproxy from start to end: sources, run loop, health server and signals put together."""

import functools
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from kproxy import __version__
from kproxy.agent import factory
from kproxy.agent.agent import Agent
from kproxy.agent.config import ProxyConfig, validate
from kproxy.agent.flows import FlowCleaner
from kproxy.agent.health import HealthServer, HealthState
from kproxy.agent.inbox import Inbox
from kproxy.agent.node import needs_interfaces
from kproxy.agent.service_health import ServiceHealth
from kproxy.backends.ipvs.names import DEVICE
from kproxy.kernel import links
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from kproxy.sources.base import Source
from kproxy.state.decode import Kind

log = structlog.stdlib.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(config: ProxyConfig) -> bool:
    """Run in the foreground until SIGTERM or SIGINT, or with `once` until one complete sync is applied.

    Returns whether all went well: with `once`, whether every service was applied. The rules stay in place.
    Raises ConfigError, ModeUnavailable, or OSError if the health address cannot be bound.
    """
    validate(config)
    stop = threading.Event()
    inbox = Inbox(frozenset(Kind))
    mode = factory.make_mode(config)
    flows = FlowCleaner(NetlinkConntrack)
    health = HealthState(config.sync_period, time.monotonic, lambda: inbox.pending_since)
    services = ServiceHealth(health.proxy_healthy)
    interfaces = functools.partial(links.local_addresses, exclude={DEVICE})
    agent = Agent(config, inbox, mode, health, interfaces, flows, services)
    log.info("starting", version=__version__, node=config.node_name, mode=config.proxy_mode)
    with _stopped_by_signals(stop, inbox), _health_server(config, health):
        threads = [_start("source", functools.partial(_source(config).run, inbox, stop), stop, inbox)]
        threads.append(_start("service-health", functools.partial(services.run, stop), stop, inbox))
        threads.append(_start("flows", functools.partial(flows.run, stop), stop, inbox))
        if needs_interfaces(config):
            threads.append(
                _start("addresses", functools.partial(_follow_addresses, agent, stop), stop, inbox)
            )
        try:
            complete = True
            if config.once:
                complete = agent.run_once(stop)
            else:
                agent.run(stop)
        finally:
            stop.set()
            inbox.wake()
            flows.wake()
            services.wake()
            for thread in threads:
                thread.join(timeout=5)
    log.info("stopped", rules="left in place")
    return complete


def _source(config: ProxyConfig) -> Source:
    if config.manifests is not None:
        from kproxy.sources.manifests import ManifestSource

        return ManifestSource(config.manifests, config.node_name)
    from kproxy.sources.cluster import ClusterAccess
    from kproxy.sources.kubernetes import KubernetesSource

    return KubernetesSource(ClusterAccess(kubeconfig=config.kubeconfig), config.node_name)


def _start(name: str, work: Callable[[], None], stop: threading.Event, inbox: Inbox) -> threading.Thread:
    """Run `work` on a thread; if it dies, the whole process stops, for it would go stale unnoticed."""

    def guarded() -> None:
        try:
            work()
        except Exception:
            log.exception("thread_died", thread=name)
            raise
        finally:
            if not stop.is_set():
                stop.set()
                inbox.wake()

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


def _follow_addresses(agent: Agent, stop: threading.Event) -> None:
    with links.address_events(exclude={DEVICE}) as events:
        while not stop.is_set():
            ready, _, _ = select.select([events], [], [], 1.0)
            if ready and events.drain():
                agent.interfaces_changed()


@contextmanager
def _stopped_by_signals(stop: threading.Event, inbox: Inbox) -> Iterator[None]:
    """Set `stop` on the first signal, from a thread of its own.

    A handler may run while the main thread is inside the very lock that setting an Event takes, and would
    wait for it for ever; so the handler does nothing, and a thread reads what the interpreter writes to the
    wakeup descriptor (signal.set_wakeup_fd).
    """
    reader, writer = socket.socketpair()
    os.set_blocking(writer.fileno(), False)

    def follow() -> None:
        for number in reader.recv(1):
            log.info("stopping", signal=signal.Signals(number).name)
            stop.set()
            inbox.wake()

    thread = threading.Thread(target=follow, name="signals", daemon=True)
    thread.start()
    previous = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    descriptor = signal.set_wakeup_fd(writer.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()


@contextmanager
def _health_server(config: ProxyConfig, state: HealthState) -> Iterator[None]:
    if not config.healthz_bind_address or config.once:
        yield
        return
    server = HealthServer(config.healthz_bind_address, state)
    server.start()
    try:
        yield
    finally:
        server.stop()
