"""One kproxy from start to end: sources, run loop, health server and signals put together."""

import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import Self

import structlog

from kproxy import __version__, logs
from kproxy.agent import factory
from kproxy.agent.address_watch import AddressWatch
from kproxy.agent.agent import Agent
from kproxy.agent.collection import readers
from kproxy.agent.config import ProxyConfig, validate
from kproxy.agent.descriptors import DescriptorShares, share
from kproxy.agent.diagnostics import Inspector
from kproxy.agent.exposition import Exposition
from kproxy.agent.flows import FlowCleaner
from kproxy.agent.health import HEALTHZ, HealthServer, HealthState
from kproxy.agent.health_monitor import HealthMonitor
from kproxy.agent.http_server import HttpServer, Routes
from kproxy.agent.inbox import Inbox
from kproxy.agent.input import Input, make_input
from kproxy.agent.metric_series import HEALTHZ as HEALTHZ_ANSWERS
from kproxy.agent.metric_series import LIVEZ as LIVEZ_ANSWERS
from kproxy.agent.metrics import Metrics, observe_check
from kproxy.agent.mode import ModeUnavailable
from kproxy.agent.node import wants_service_cidrs
from kproxy.agent.node_setup import set_conntrack, set_oom_score, set_up_node
from kproxy.agent.reporter import Reporter
from kproxy.agent.service_health import ServiceHealth
from kproxy.agent.settings.reload import Reloader
from kproxy.backends.ipvs.names import DEVICE
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from kproxy.kernel.limits import raise_descriptor_limit
from kproxy.kernel.processes import Runner, StopEvent
from kproxy.sources.base import SourceError
from kproxy.state.decode import Kind

log = structlog.stdlib.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

ReloaderFor = Callable[[Callable[[ProxyConfig], None]], Reloader]
"""Makes the reloader that hands new settings to a function."""


def run(config: ProxyConfig, reloader_for: ReloaderFor) -> bool:
    """Run in the foreground until SIGTERM or SIGINT, or with `once` until one complete sync is applied.

    Returns whether all went well: with `once`, whether every service was applied. The rules stay in place.
    SIGHUP reads the configuration again. Raises ConfigError, ModeUnavailable, SourceError, or OSError if an
    address cannot be bound and that shall be the end.
    """
    validate(config)
    stop = StopEvent()
    inbox = Inbox([kind for kind in Kind if kind is not Kind.SERVICE_CIDR or wants_service_cidrs(config)])
    metrics = Metrics()
    given = make_input(config, metrics, inbox.wake)
    hangups = _Hangups()
    # Signals count from here on: a program that hangs while the kernel is tried must not hold up the end.
    with _led_by_signals(stop, inbox, hangups), _Threads(stop, inbox) as threads:
        # The lists arrive while the kernel is tried.
        threads.start("source", functools.partial(given.source.run, inbox, stop))
        set_up_node(config)
        try:
            complete = _work(config, reloader_for, stop, inbox, metrics, given, threads, hangups)
        except ModeUnavailable:
            if not stop.is_set():
                raise
            complete = not config.once
    log.info("stopped", rules="left in place")
    if threads.refused is not None:
        raise threads.refused
    return complete and not threads.died


def _work(
    config: ProxyConfig,
    reloader_for: ReloaderFor,
    stop: StopEvent,
    inbox: Inbox,
    metrics: Metrics,
    given: Input,
    threads: "_Threads",
    hangups: "_Hangups",
) -> bool:
    """Put the rest together, and work until `stop` is set; see `run`."""
    shares = share(raise_descriptor_limit())
    make_mode = functools.partial(factory.make_mode, runner=Runner(stop))
    mode = make_mode(config)
    flows = FlowCleaner(NetlinkConntrack, metrics)
    health = HealthState(config.sync_period, time.monotonic, lambda: inbox.waiting_since)
    events = given.events
    reporter = Reporter(metrics, events.notify) if events is not None else Reporter(metrics)
    services = ServiceHealth(health.proxy_healthy, reporter.port_refused, shares)
    interfaces = AddressWatch(DEVICE)

    def mode_refused(wanted: ProxyConfig, kept: ProxyConfig, reason: str) -> None:
        reloader.take_back_mode(wanted, kept, reason)

    agent = Agent(
        config,
        inbox,
        mode,
        health,
        interfaces.addresses,
        flows,
        services,
        reporter,
        make_mode,
        mode_refused,
        given.api_servers,
    )
    settings = _Settings(config, agent, given)
    reloader = reloader_for(settings.take)
    hangups.follow(reloader)
    inspector = Inspector(
        lambda: agent.config, reloader, inbox, health, reporter, given.watches, time.monotonic
    )
    exposition = Exposition(
        metrics,
        lambda: agent.config.proxy_mode,
        readers(lambda: agent.mode, inspector.verdict, inbox, reporter, config.metrics_service_limit),
    )
    monitor = HealthMonitor(inspector.verdict, events.notify if events is not None else lambda _: None)
    log.info("starting", version=__version__, node=config.node_name, mode=config.proxy_mode)
    servers = _servers(config, health, metrics, inspector.routes(exposition, metrics), shares)
    with _serving(servers, hard_fail=config.bind_address_hard_fail):
        if events is not None:
            threads.start("events", functools.partial(events.run, stop), events.wake)
        threads.start("service-health", functools.partial(services.run, stop), services.wake)
        threads.start("flows", functools.partial(flows.run, stop), flows.wake)
        follow = functools.partial(interfaces.run, agent.addresses_changed)
        threads.start("addresses", follow, interfaces.stop)
        if config.once:
            return agent.run_once(stop)
        threads.start("settings", functools.partial(_watch, reloader, stop))
        threads.start("health", functools.partial(monitor.run, stop))
        agent.run(stop)
    return True


def prepare(config: ProxyConfig) -> None:
    """Set the kernel parameters that need more than CAP_NET_ADMIN, and nothing else (--init-only).

    Raises ConfigError, ModeUnavailable.
    """
    validate(config)
    set_up_node(config)
    factory.set_sysctls(config)


class _Settings:
    """Hands new settings to everything that works with them."""

    def __init__(self, config: ProxyConfig, agent: Agent, given: Input) -> None:
        self._config = config
        self._agent = agent
        self._given = given

    def take(self, config: ProxyConfig) -> None:
        old, self._config = self._config, config
        logs.configure(config.verbosity)
        if config.conntrack != old.conntrack:
            set_conntrack(config.conntrack)
        if config.oom_score_adj != old.oom_score_adj:
            set_oom_score(config.oom_score_adj)
        self._given.follow(config)
        self._agent.reconfigure(config)


def _watch(reloader: Reloader, stop: threading.Event) -> None:
    reloader.watch(stop)
    stop.wait()


class _Threads:
    """The threads beside the run loop. They end with the block; if one dies, the whole process stops.

    It would go stale unnoticed. `died` tells of it, and `refused` of a source that could not begin.
    """

    def __init__(self, stop: threading.Event, inbox: Inbox) -> None:
        self._stop = stop
        self._inbox = inbox
        self._wakes = [inbox.wake]
        self._started: list[threading.Thread] = []
        self.died = False
        self.refused: SourceError | None = None

    def start(self, name: str, work: Callable[[], None], wake: Callable[[], None] | None = None) -> None:
        """Run `work`, which ends once `stop` is set and, if it sleeps, `wake` was called."""

        def guarded() -> None:
            try:
                work()
            except SourceError as error:
                self.refused = error
            except Exception:
                self.died = True
                log.exception("thread_died", thread=name)
            finally:
                if not self._stop.is_set():
                    self._stop.set()
                    self._inbox.wake()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._started.append(thread)
        if wake is not None:
            self._wakes.append(wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for wake in self._wakes:
            wake()
        for thread in self._started:
            thread.join(timeout=5)


class _Hangups:
    """Hands each SIGHUP to the reloader; one that comes before there is a reloader waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reloader: Reloader | None = None
        self._missed = ""

    def follow(self, reloader: Reloader) -> None:
        with self._lock:
            self._reloader, missed = reloader, self._missed
        if missed:
            reloader.reload(missed)

    def reload(self, signal_name: str) -> None:
        with self._lock:
            reloader, self._missed = self._reloader, signal_name
        if reloader is not None:
            reloader.reload(signal_name)


@contextmanager
def _led_by_signals(stop: threading.Event, inbox: Inbox, hangups: _Hangups) -> Iterator[None]:
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
                hangups.reload(number.name)
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


def _servers(
    config: ProxyConfig, health: HealthState, metrics: Metrics, routes: Routes, shares: DescriptorShares
) -> list[HttpServer]:
    def answered(path: str, status: int) -> None:
        metrics.add(HEALTHZ_ANSWERS if path == HEALTHZ else LIVEZ_ANSWERS, str(status))
        observe_check(metrics, "sync", path.removeprefix("/"), passed=status == HTTPStatus.OK)

    servers: list[HttpServer] = []
    if config.healthz_bind_address and not config.once:
        servers.append(HealthServer(config.healthz_bind_address, health, answered, limit=shares.healthz))
    if config.metrics_bind_address and not config.once:
        servers.append(HttpServer("metrics", config.metrics_bind_address, routes, limit=shares.metrics))
    return servers


@contextmanager
def _serving(servers: Iterable[HttpServer], *, hard_fail: bool) -> Iterator[None]:
    with ExitStack() as started:
        for server in servers:
            server.start(hard_fail=hard_fail)
            started.callback(server.stop)
        yield
