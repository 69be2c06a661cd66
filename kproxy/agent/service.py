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

from kproxy import __version__, logs
from kproxy.agent import factory
from kproxy.agent.agent import Agent
from kproxy.agent.config import ProxyConfig, validate
from kproxy.agent.flows import FlowCleaner
from kproxy.agent.health import HealthServer, HealthState
from kproxy.agent.inbox import Inbox
from kproxy.agent.listening import serving
from kproxy.agent.node_setup import set_conntrack, set_oom_score, set_up_node
from kproxy.agent.service_health import ServiceHealth
from kproxy.agent.settings.reload import Reloader
from kproxy.backends.ipvs.names import DEVICE
from kproxy.kernel import links
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from kproxy.sources.base import Source
from kproxy.state.decode import Kind

log = structlog.stdlib.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

ReloaderFor = Callable[[Callable[[ProxyConfig], None]], Reloader]
"""Makes the reloader that hands new settings to a function."""


def run(config: ProxyConfig, reloader_for: ReloaderFor | None = None) -> bool:
    """Run in the foreground until SIGTERM or SIGINT, or with `once` until one complete sync is applied.

    Returns whether all went well: with `once`, whether every service was applied. The rules stay in place.
    SIGHUP reads the configuration again. Raises ConfigError, ModeUnavailable, or OSError if the health
    address cannot be bound and `bind_address_hard_fail` is set.
    """
    validate(config)
    set_up_node(config)
    stop = threading.Event()
    inbox = Inbox(frozenset(Kind))
    mode = factory.make_mode(config)
    flows = FlowCleaner(NetlinkConntrack)
    health = HealthState(config.sync_period, time.monotonic, lambda: inbox.pending_since)
    services = ServiceHealth(health.proxy_healthy)
    interfaces = functools.partial(links.local_addresses, exclude={DEVICE})
    agent = Agent(config, inbox, mode, health, interfaces, flows, services)
    log.info("starting", version=__version__, node=config.node_name, mode=config.proxy_mode)
    reloader = reloader_for(_Settings(config, agent).take) if reloader_for is not None else None
    with _led_by_signals(stop, inbox, reloader), _health_server(config, health):
        threads = [_start("source", functools.partial(_source(config).run, inbox, stop), stop, inbox)]
        threads.append(_start("service-health", functools.partial(services.run, stop), stop, inbox))
        threads.append(_start("flows", functools.partial(flows.run, stop), stop, inbox))
        threads.append(_start("addresses", functools.partial(_follow_addresses, agent, stop), stop, inbox))
        if reloader is not None and not config.once:
            threads.append(_start("settings", functools.partial(_watch, reloader, stop), stop, inbox))
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


def prepare(config: ProxyConfig) -> None:
    """Set the kernel parameters that need more than CAP_NET_ADMIN, and nothing else (--init-only).

    Raises ConfigError, ModeUnavailable.
    """
    validate(config)
    set_up_node(config)
    factory.set_sysctls(config)


class _Settings:
    """Hands new settings to everything that works with them."""

    def __init__(self, config: ProxyConfig, agent: Agent) -> None:
        self._config = config
        self._agent = agent

    def take(self, config: ProxyConfig) -> None:
        old, self._config = self._config, config
        logs.configure(config.verbosity)
        if config.conntrack != old.conntrack:
            set_conntrack(config.conntrack)
        if config.oom_score_adj != old.oom_score_adj:
            set_oom_score(config.oom_score_adj)
        self._agent.reconfigure(config)


def _watch(reloader: Reloader, stop: threading.Event) -> None:
    reloader.watch(stop)
    stop.wait()


def _source(config: ProxyConfig) -> Source:
    if config.manifests is not None:
        from kproxy.sources.manifests import ManifestSource

        return ManifestSource(config.manifests, config.node_name)
    from kproxy.sources.cluster import ClusterAccess
    from kproxy.sources.kubernetes import KubernetesSource

    return KubernetesSource(
        ClusterAccess(kubeconfig=config.kubeconfig, master=config.master or None), config.node_name
    )


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
def _led_by_signals(stop: threading.Event, inbox: Inbox, reloader: Reloader | None) -> Iterator[None]:
    """Set `stop` on SIGTERM and SIGINT, reload on SIGHUP, from a thread of its own.

    A handler may run while the main thread is inside the very lock that setting an Event takes, and would
    wait for it for ever; so the handler does nothing, and a thread reads what the interpreter writes to the
    wakeup descriptor (signal.set_wakeup_fd).
    """
    reader, writer = socket.socketpair()
    os.set_blocking(writer.fileno(), False)

    def follow() -> None:
        while received := reader.recv(1):
            number = signal.Signals(received[0])
            if number is signal.SIGHUP:
                if reloader is not None:
                    reloader.reload(number.name)
                continue
            log.info("stopping", signal=number.name)
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
    address = config.healthz_bind_address
    make = functools.partial(HealthServer, address, state)
    with serving("health", address, make, hard_fail=config.bind_address_hard_fail):
        yield
