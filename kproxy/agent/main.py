"""One kproxy process from start to end: connects sources, run loop, health server and signals."""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import Self

import structlog

from kproxy import __version__, logs
from kproxy.agent.conntrack_cleaner import ConntrackCleaner
from kproxy.agent.explainer import Explainer
from kproxy.agent.loop import Agent
from kproxy.agent.once import OnceTimeout, waits_for
from kproxy.agent.signals import Interrupted, Leaving, Signals
from kproxy.agent.source_factory import ObjectSource, make_source
from kproxy.backends.ipvs.names import DEVICE
from kproxy.config.model import ProxyConfig, validate
from kproxy.config.reload import Reloader
from kproxy.inspect import changes
from kproxy.inspect.explain import client
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from kproxy.kernel.limits import raise_descriptor_limit
from kproxy.kernel.malloc import use_one_arena
from kproxy.kernel.processes import Runner, StopEvent
from kproxy.modes.base import ModeUnavailable
from kproxy.modes.kinds import needed_kinds
from kproxy.modes.leftovers import remove_everything, remove_stale_traces
from kproxy.modes.registry import mode_registry
from kproxy.node.address_watch import AddressWatch
from kproxy.node.descriptors import DescriptorShares, share
from kproxy.node.instance import Instance
from kproxy.node.kube_proxy_process import warn_of_kube_proxy
from kproxy.node.setup import set_conntrack, set_oom_score, set_up_node
from kproxy.sources.base import SourceError
from kproxy.state.store import ObjectStore
from kproxy.telemetry.collection import readers
from kproxy.telemetry.exposition import Exposition
from kproxy.telemetry.health_monitor import HealthMonitor
from kproxy.telemetry.http.debug import StatusBuilder
from kproxy.telemetry.http.health import HEALTHZ, HealthServer, HealthState
from kproxy.telemetry.http.health_check_node_ports import ServiceHealth
from kproxy.telemetry.http.server import HttpServer, Queries, Routes
from kproxy.telemetry.metrics import Metrics, observe_check
from kproxy.telemetry.observer import SyncObserver
from kproxy.telemetry.series import HEALTHZ as HEALTHZ_ANSWERS
from kproxy.telemetry.series import LIVEZ as LIVEZ_ANSWERS

log = structlog.stdlib.get_logger(__name__)

CLEANUP_SECONDS = 75.0
"""Seconds for the removal of all rules at the end, after which running programs are stopped.

It leaves a margin to the 90 s after which kubelet kills the pod (terminationGracePeriodSeconds of the
manifests) and `kproxy cleanup --stop` gives up, so that this process can log what it could not remove.
"""

ReloaderFor = Callable[[Callable[[ProxyConfig], int]], Reloader]
"""Makes the reloader that passes new settings to a function."""


def run(config: ProxyConfig, reloader_for: ReloaderFor) -> bool:
    """Run in the foreground until SIGTERM or SIGINT, or with `once` until one complete sync is applied.

    Returns True on success: with `once`, if every service was applied; with `cleanup_on_exit`, if everything
    could be removed after a signal. Otherwise the rules stay in place. SIGHUP reads the configuration again.
    Raises ConfigError, ModeUnavailable, SourceError, InstanceRunning, OnceTimeout, or OSError if an address
    cannot be bound and the settings make that an error.
    """
    validate(config)
    began = time.monotonic()
    use_one_arena()
    stop = StopEvent()
    store = ObjectStore(needed_kinds(config))
    metrics = Metrics()
    objects = make_source(config, metrics, store.wake)
    leaving = Leaving(configured=config.cleanup_on_exit)
    instance = Instance("run --once" if config.once else "run", __version__, lambda: config.proxy_mode)

    def end() -> None:
        instance.update(stopping=True)
        stop.set()
        store.wake()

    with Signals(end, leaving) as signals, instance:
        leaving.changed = lambda cleans_up: instance.update(cleanup_on_exit=cleans_up)
        leaving.changed(leaving.cleans_up)
        try:
            with signals.interruptible():
                instance.acquire()
        except Interrupted:
            return not config.once
        warn_of_kube_proxy(ask=True)
        remove_stale_traces()
        with _Threads(stop, store) as threads:
            # The lists arrive while the kernel is probed.
            threads.start("source", functools.partial(objects.source.run, store, stop))
            set_up_node(config)
            try:
                complete = _work(
                    config,
                    reloader_for,
                    stop,
                    store,
                    metrics,
                    objects,
                    threads,
                    signals,
                    leaving,
                    instance,
                    began,
                )
            except ModeUnavailable:
                if not stop.is_set():
                    raise
                complete = not config.once
        instance.update(stopping=True)
        if signals.ended and leaving.cleans_up:
            complete = _clean_up(signals) and complete
        else:
            log.info("stopped", rules="left in place")
    if threads.refused is not None:
        raise threads.refused
    return complete and not threads.died


def _clean_up(signals: Signals) -> bool:
    """Remove everything; False if something could not be removed, or another signal cut the removal short."""
    began = time.monotonic()
    late = StopEvent()
    timer = threading.Timer(CLEANUP_SECONDS, late.set)
    timer.daemon = True
    try:
        with signals.interruptible():
            timer.start()
            clean = remove_everything(runner=Runner(late))
    except Interrupted as signal:
        log.error("cleanup_interrupted", signal=signal.number.name, remedy="kproxy cleanup removes the rest")
        return False
    finally:
        timer.cancel()
    seconds = round(time.monotonic() - began, 3)
    if clean:
        log.info("stopped", rules="removed", seconds=seconds)
    else:
        log.error("stopped", rules="not all removed", seconds=seconds, remedy="see above; kproxy cleanup")
    return clean


def _work(
    config: ProxyConfig,
    reloader_for: ReloaderFor,
    stop: StopEvent,
    store: ObjectStore,
    metrics: Metrics,
    objects: ObjectSource,
    threads: "_Threads",
    signals: Signals,
    leaving: Leaving,
    instance: Instance,
    began: float,
) -> bool:
    """Create the agent and its servers, and work until `stop` is set; see `run`."""
    shares = share(raise_descriptor_limit())
    modes = mode_registry(Runner(stop))
    mode = modes.make(config)
    flows = ConntrackCleaner(NetlinkConntrack, metrics)
    health = HealthState(config.sync_period, time.monotonic, lambda: store.waiting_since)
    events = objects.events
    observer = SyncObserver(metrics, events.notify) if events is not None else SyncObserver(metrics)
    services = ServiceHealth(health.proxy_healthy, observer.port_refused, shares)
    interfaces = AddressWatch(DEVICE)

    agent = Agent(
        config,
        store,
        mode,
        health,
        objects.addresses or interfaces.addresses,
        flows,
        services,
        observer,
        modes,
        objects.api_servers,
    )
    instance.follow(lambda: agent.config.proxy_mode)
    settings = _Settings(config, agent, objects, leaving)
    reloader = reloader_for(settings.take)
    signals.follow_reloads(reloader.reload)
    status_builder = StatusBuilder(
        lambda: agent.config,
        reloader,
        store,
        health,
        observer,
        objects.watches,
        time.monotonic,
        services.problems,
    )
    exposition = Exposition(
        metrics,
        lambda: modes.foreign_metrics(agent.config.proxy_mode),
        readers(lambda: agent.mode, status_builder.verdict, store, observer, config.metrics_service_limit),
    )
    monitor = HealthMonitor(status_builder.verdict, events.notify if events is not None else lambda _: None)
    log.info("starting", version=__version__, node=config.node_name, mode=config.proxy_mode)
    explainer = Explainer(agent, store, modes)
    queries = {client.PATH: explainer.answer, changes.PATH: explainer.changes}
    servers = _servers(config, health, metrics, status_builder.routes(exposition, metrics), queries, shares)
    with _serving(servers, hard_fail=config.bind_address_hard_fail):
        if events is not None:
            threads.start("events", functools.partial(events.run, stop), events.wake)
        threads.start("service-health", functools.partial(services.run, stop), services.wake)
        threads.start("flows", functools.partial(flows.run, stop), flows.wake)
        follow = functools.partial(interfaces.run, agent.addresses_changed)
        threads.start("addresses", follow, interfaces.stop)
        if config.once:
            return _once(config, agent, store, objects, stop, began)
        threads.start("settings", functools.partial(_watch, reloader, stop))
        follow_modes = functools.partial(reloader.follow, agent.reported, stop)
        threads.start("modes", follow_modes, agent.reported.wake)
        threads.start("health", functools.partial(monitor.run, stop))
        agent.run(stop)
    return True


def _once(
    config: ProxyConfig,
    agent: Agent,
    store: ObjectStore,
    objects: ObjectSource,
    stop: threading.Event,
    began: float,
) -> bool:
    """Work until one sync succeeded. Raises OnceTimeout."""
    deadline = began + config.once_timeout if config.once_timeout else None
    if agent.run_once(stop, deadline):
        return True
    if deadline is not None and not stop.is_set() and time.monotonic() >= deadline:
        waited = waits_for(store.missing, objects.watches(), agent.sync_errors, knows_node=agent.knows_node)
        raise OnceTimeout(config.once_timeout, waited)
    return False


def prepare(config: ProxyConfig) -> None:
    """Set the kernel parameters that need more than CAP_NET_ADMIN, and nothing else (--init-only).

    Raises ConfigError, ModeUnavailable.
    """
    validate(config)
    set_up_node(config)
    mode_registry().spec(config).set_sysctls(config)


class _Settings:
    """Passes new settings to every component that uses them."""

    def __init__(self, config: ProxyConfig, agent: Agent, objects: ObjectSource, leaving: Leaving) -> None:
        self._config = config
        self._agent = agent
        self._objects = objects
        self._leaving = leaving

    def take(self, config: ProxyConfig) -> int:
        """Apply the settings; return the revision by which the run loop reports about them."""
        old, self._config = self._config, config
        logs.configure(config.verbosity, config.logging_format, config.limit_log_lines_per_minute)
        if config.conntrack != old.conntrack:
            set_conntrack(config.conntrack)
        if config.oom_score_adj != old.oom_score_adj:
            set_oom_score(config.oom_score_adj)
        self._leaving.configure(cleanup_on_exit=config.cleanup_on_exit)
        self._objects.follow(config)
        return self._agent.reconfigure(config)


def _watch(reloader: Reloader, stop: threading.Event) -> None:
    reloader.watch(stop)
    stop.wait()


class _Threads:
    """The threads beside the run loop. They end with the block; if one dies, the whole process stops.

    Otherwise the rules would become stale unnoticed. `died` is True after that; `refused` holds the error of
    a source that could not begin.
    """

    def __init__(self, stop: threading.Event, store: ObjectStore) -> None:
        self._stop = stop
        self._store = store
        self._wakes = [store.wake]
        self._started: list[threading.Thread] = []
        self.died = False
        self.refused: SourceError | None = None

    def start(self, name: str, work: Callable[[], None], wake: Callable[[], None] | None = None) -> None:
        """Run `work`, which must end once `stop` is set and `wake` was called."""

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
                    self._store.wake()

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


def _servers(
    config: ProxyConfig,
    health: HealthState,
    metrics: Metrics,
    routes: Routes,
    queries: Queries,
    shares: DescriptorShares,
) -> list[HttpServer]:
    def answered(path: str, status: int) -> None:
        metrics.add(HEALTHZ_ANSWERS if path == HEALTHZ else LIVEZ_ANSWERS, str(status))
        observe_check(metrics, "sync", path.removeprefix("/"), passed=status == HTTPStatus.OK)

    servers: list[HttpServer] = []
    if config.healthz_bind_address and not config.once:
        servers.append(HealthServer(config.healthz_bind_address, health, answered, limit=shares.healthz))
    if config.metrics_bind_address and not config.once:
        address = config.metrics_bind_address
        servers.append(HttpServer("metrics", address, routes, limit=shares.metrics, queries=queries))
    return servers


@contextmanager
def _serving(servers: Iterable[HttpServer], *, hard_fail: bool) -> Iterator[None]:
    with ExitStack() as started:
        for server in servers:
            server.start(hard_fail=hard_fail)
            started.callback(server.stop)
        yield
