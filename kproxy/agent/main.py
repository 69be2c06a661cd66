"""One kproxy process from start to end: connects sources, run loop, health server and signals."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable

import structlog

from kproxy import __version__
from kproxy.agent.conntrack_cleaner import ConntrackCleaner
from kproxy.agent.explainer import Explainer
from kproxy.agent.live_settings import LiveSettings
from kproxy.agent.loop import Agent
from kproxy.agent.once import OnceTimeout, waits_for
from kproxy.agent.policy.control import PolicyControl
from kproxy.agent.servers import make_servers, serving
from kproxy.agent.signals import Interrupted, Leaving, Signals
from kproxy.agent.source_factory import ObjectSource, make_source
from kproxy.agent.threads import Threads
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
from kproxy.node.descriptors import share
from kproxy.node.instance import Instance
from kproxy.node.kube_proxy_process import warn_of_kube_proxy
from kproxy.node.setup import set_up_node
from kproxy.state.store import ObjectStore
from kproxy.telemetry.collection import readers
from kproxy.telemetry.exposition import Exposition
from kproxy.telemetry.health_monitor import HealthMonitor
from kproxy.telemetry.http.debug import StatusBuilder
from kproxy.telemetry.http.health import HealthState
from kproxy.telemetry.http.health_check_node_ports import ServiceHealth
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.observer import SyncObserver

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
        with Threads(stop, store) as threads:
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
    threads: Threads,
    signals: Signals,
    leaving: Leaving,
    instance: Instance,
    began: float,
) -> bool:
    """Create the agent and its servers, and work until `stop` is set; see `run`."""
    shares = share(raise_descriptor_limit())
    events = objects.events
    notify = events.notify if events is not None else lambda _: None
    policies = PolicyControl(config, store, metrics, notify, threads, stop)
    modes = mode_registry(Runner(stop), policies.leftovers)
    policies.begin(modes.watches)
    mode = modes.make(config)
    flows = ConntrackCleaner(NetlinkConntrack, metrics)
    health = HealthState(config.sync_period, time.monotonic, lambda: store.waiting_since)
    health.policies = policies.health
    observer = SyncObserver(metrics, notify)
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
    settings = LiveSettings(config, agent, objects, leaving, policies)
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
        policies.status,
        lambda: agent.mode,
    )
    exposition = Exposition(
        metrics,
        lambda: modes.foreign_metrics(agent.config.proxy_mode) | policies.hidden,
        (
            *readers(
                lambda: agent.mode, status_builder.verdict, store, observer, config.metrics_service_limit
            ),
            ("policies", policies.samples),
        ),
    )
    monitor = HealthMonitor(status_builder.verdict, notify)
    log.info("starting", version=__version__, node=config.node_name, mode=config.proxy_mode)
    explainer = Explainer(agent, store, modes, lambda: policies.agent)
    policies.service_of = explainer.service_at
    queries = {client.PATH: explainer.answer, changes.PATH: explainer.changes}
    routes = status_builder.routes(exposition, metrics)
    servers = make_servers(config, health, metrics, routes, queries, shares)
    with contextlib.closing(agent), serving(servers, hard_fail=config.bind_address_hard_fail):
        if events is not None:
            threads.start("events", functools.partial(events.run, stop), events.wake)
        threads.start("service-health", functools.partial(services.run, stop), services.wake)
        threads.start("flows", functools.partial(flows.run, stop), flows.wake)
        follow = functools.partial(interfaces.run, agent.addresses_changed)
        threads.start("addresses", follow, interfaces.stop)
        if config.once:
            return _once(config, agent, policies, store, objects, stop, began)
        threads.start("settings", functools.partial(_watch, reloader, stop))
        follow_modes = functools.partial(reloader.follow, agent.reported, stop)
        threads.start("modes", follow_modes, agent.reported.wake)
        threads.start("health", functools.partial(monitor.run, stop))
        agent.run(stop)
    return True


def _once(
    config: ProxyConfig,
    agent: Agent,
    policies: PolicyControl,
    store: ObjectStore,
    objects: ObjectSource,
    stop: threading.Event,
    began: float,
) -> bool:
    """Work until one sync of services and one of policies succeeded. Raises OnceTimeout."""
    deadline = began + config.once_timeout if config.once_timeout else None
    served = agent.run_once(stop, deadline)
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if policies.wait_applied(left) and served:
        return True
    if deadline is not None and not stop.is_set() and time.monotonic() >= deadline:
        waited = waits_for(
            store.missing,
            objects.watches(),
            agent.sync_errors,
            knows_node=agent.knows_node,
            policies=(policies.waits_for(), policies.errors),
        )
        raise OnceTimeout(config.once_timeout, waited)
    return False


def prepare(config: ProxyConfig) -> None:
    """Set the kernel parameters that need more than CAP_NET_ADMIN, and nothing else (--init-only).

    Raises ConfigError, ModeUnavailable.
    """
    validate(config)
    set_up_node(config)
    mode_registry().spec(config).set_sysctls(config)


def _watch(reloader: Reloader, stop: threading.Event) -> None:
    reloader.watch(stop)
    stop.wait()
