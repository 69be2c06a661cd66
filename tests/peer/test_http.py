"""Both programs over HTTP: health, health-check node ports, the mode, and the series of /metrics."""

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest

from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6
from tests.peer.cases.words import LOCAL, balancer, leaving, unready
from tests.peer.objects import Ep, node, service, slices
from tests.peer.site import DEADLINE, Runner, Site
from tests.peer.web import Reply, get

pytestmark = pytest.mark.root

UNSTEADY = {"Date", "Content-Length", "Transfer-Encoding", "Connection"}
"""Headers of the HTTP servers themselves."""

LACKING: dict[str, str] = {
    "apiserver_audit_": "registered by a library that kube-proxy links, never counted",
    "authentication_token_cache_": "the same",
    "cardinality_enforcement_": "about the metrics library itself",
    "disabled_metrics_": "about the metrics library itself",
    "go_": "about the Go runtime",
    "hidden_metrics_": "about the metrics library itself",
    "kubernetes_feature_enabled": "kproxy has no feature gates",
    "process_network_": "of client_golang alone; the node's exporter has them",
    "process_virtual_memory_max_bytes": "a limit that Prometheus' Python client does not report",
    "registered_metrics_": "about the metrics library itself",
    "rest_client_exec_plugin_": "about plugins of client-go",
    "rest_client_rate_limiter_duration_seconds": "kproxy has no client-side rate limit",
    "rest_client_request_retries_total": "about retries inside client-go",
    "rest_client_request_size_bytes": "about client-go's requests",
    "rest_client_response_size_bytes": "about client-go's requests",
    "rest_client_transport_": "about client-go's connections",
}
"""Series, by the beginning of their names, that kproxy does not have, and why."""


def others(site: Site) -> list[Runner]:
    """Every contender but the reference."""
    return list(site.runners[1:])


def steady(reply: Reply | None) -> tuple[int, dict[str, str]] | None:
    """Status and headers, without those of the moment."""
    if reply is None:
        return None
    return reply.status, {k: v for k, v in reply.headers.items() if k not in UNSTEADY}


def check_ports(runner: Runner, number: int) -> list[Reply | None]:
    """What a health-check node port answers in each family."""
    return [get(runner.lab.client, ip, number, "/") for ip in (NODE_IP4[0], NODE_IP6[0])]


@pytest.mark.parametrize(
    "endpoints",
    [
        ("local-0", "local-1", "remote-0"),
        ("remote-0",),
        (),
        (unready("local-0"), "local-1"),
        (leaving("local-0"), "remote-0"),
        (leaving("local-0"), unready("remote-0")),
        (Ep("local-0", ready=None), Ep("local-1", node_name=None)),
    ],
    ids=str,
)
def test_health_check_node_ports_answer_alike(site: Site, endpoints: tuple[Ep | str, ...]) -> None:
    number = 32100
    site.write(balancer(healthCheckNodePort=number, **LOCAL), *slices("web", *endpoints))
    site.settle()
    reference, *rest = site.runners
    expected = _eventually(reference, number)
    for runner in rest:
        for kube_proxy, kproxy in zip(expected, _eventually(runner, number), strict=True):
            assert kube_proxy is not None
            assert kproxy is not None
            assert kproxy.status == kube_proxy.status, runner.contender
            assert json.loads(kube_proxy.body).items() <= json.loads(kproxy.body).items(), runner.contender
            if site.peer.version >= (1, 32):
                assert kproxy.body == kube_proxy.body
            ended = steady(kube_proxy)
            mine = steady(kproxy)
            assert ended is not None
            assert mine is not None
            assert ended[1].items() <= mine[1].items(), runner.contender


def test_health_check_node_ports_close_alike(site: Site) -> None:
    number = 32101
    site.write(balancer(healthCheckNodePort=number, **LOCAL), *slices("web", "local-0"))
    site.settle()
    for runner in site.runners:
        assert all(_eventually(runner, number)), runner.contender
    site.write(balancer())
    site.settle()
    for runner in site.runners:
        _until(partial(_closed, runner, number))


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
def test_health_answers_are_alike(site: Site, path: str) -> None:
    if path == "/livez" and site.peer.version < (1, 28):
        pytest.skip("kube-proxy has /livez since 1.28")
    reference, *rest = site.runners
    kube_proxy = get(reference.lab.client, NODE_IP4[0], 10256, path)
    assert kube_proxy is not None
    for runner in rest:
        kproxy = get(runner.lab.client, NODE_IP4[0], 10256, path)
        assert kproxy is not None
        assert kproxy.status == kube_proxy.status
        assert json.loads(kube_proxy.body).keys() <= json.loads(kproxy.body).keys()
        assert _headers(kube_proxy).items() <= _headers(kproxy).items()


def test_answers_for_a_node_that_leaves_are_alike(site: Site) -> None:
    if site.peer.version < (1, 27):
        pytest.skip("kube-proxy looks at its node since 1.27")
    leaves = node()
    leaves["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
    site.api.apply(leaves)
    for runner in site.runners:
        _until(partial(_unfit, runner))
        assert _status(runner, "/livez") == 200, runner.contender


@pytest.mark.parametrize("path", ["/healthz", "/proxyMode"])
def test_the_metrics_server_answers_alike(site: Site, path: str) -> None:
    reference, *rest = site.runners
    kube_proxy = get(reference.lab.node, "127.0.0.1", 10249, path)
    assert kube_proxy is not None
    for runner in rest:
        kproxy = get(runner.lab.node, "127.0.0.1", 10249, path)
        assert kproxy is not None
        mode = "nftables" if "nftables" in str(runner.contender) else "iptables"
        assert (kproxy.status, kproxy.body) == (kube_proxy.status, kube_proxy.body.replace("iptables", mode))
        assert kproxy.headers.get("Content-Type") == kube_proxy.headers.get("Content-Type"), runner.contender


def test_kproxy_has_every_series_of_kube_proxy(site: Site) -> None:
    moment = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    annotated = slices("web", "local-0")
    for obj in annotated:
        obj["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": moment}
    site.write(service("web"), *annotated)
    site.settle()
    reference = _series(site.runners[0])
    for runner in others(site):
        if "nftables" in str(runner.contender):
            continue
        own = _series(runner)
        wanted = {name: kind for name, kind in reference.items() if not name.startswith(tuple(LACKING))}
        alike = {name: own.get(name) for name in wanted}
        if site.peer.version < (1, 34):  # labels were added since, ip_family above all
            alike = {name: (kind[0], wanted[name][1]) for name, kind in alike.items() if kind}
        assert alike == wanted, runner.contender


def _series(runner: Runner) -> dict[str, tuple[str, frozenset[str]]]:
    """Each family's type and, if it has samples, the names of its labels."""
    reply = get(runner.lab.node, "127.0.0.1", 10249, "/metrics")
    assert reply is not None
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", reply.body, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in types}
    for name, written in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", reply.body, re.MULTILINE):
        family = name if name in types else re.sub(r"_(bucket|sum|count|total)$", "", name)
        labels.setdefault(family, set()).update(re.findall(r'(\w+)="', written))
    return {name: (kind, frozenset(labels[name])) for name, kind in types.items()}


def _eventually(runner: Runner, number: int) -> list[Reply | None]:
    _until(lambda: all(check_ports(runner, number)))
    return check_ports(runner, number)


def _closed(runner: Runner, number: int) -> bool:
    return check_ports(runner, number) == [None, None]


def _unfit(runner: Runner) -> bool:
    return _status(runner, "/healthz") == 503


def _status(runner: Runner, path: str) -> int:
    reply = get(runner.lab.client, NODE_IP4[0], 10256, path)
    return 0 if reply is None else reply.status


def _headers(reply: Reply) -> dict[str, str]:
    found = steady(reply)
    return found[1] if found else {}


def _until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not met():
        assert time.monotonic() < deadline, "it does not come to pass"
