"""What dashboards and alerts ask for: kproxy's own, and those that are published for kube-proxy.

promtool evaluates them on what a kproxy answered at /metrics, as Prometheus would.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2] / "manifests"
MONITORING = ROOT / "components" / "monitoring"

_JOB = 'cluster="", job="kube-proxy"'
_HERE = f'{_JOB}, instance=~"a|b"'
_POST = f'rest_client_request_duration_seconds_bucket{{{_HERE}, verb="POST"}}'
_GET = f'rest_client_request_duration_seconds_bucket{{{_HERE}, verb="GET"}}'
_LATENCY = f"kubeproxy_network_programming_duration_seconds_bucket{{{_HERE}}}"
KUBERNETES_MIXIN = (
    f"absent(up{{{_JOB}}} == 1)",
    f"up{{{_JOB}}} == 0",
    f"sum(up{{{_JOB}}})",
    f"kubeproxy_network_programming_duration_seconds_bucket{{{_JOB}}}",
    f"sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{{{_HERE}}}[5m]))",
    f"histogram_quantile(0.99, rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{{{_HERE}}}[5m]))",
    f"sum(rate(kubeproxy_network_programming_duration_seconds_count{{{_HERE}}}[5m]))",
    f"histogram_quantile(0.99, sum(rate({_LATENCY}[5m])) by (instance, le))",
    *(f'sum(rate(rest_client_requests_total{{{_HERE}, code=~"{n}.."}}[5m]))' for n in (2, 3, 4, 5)),
    f"histogram_quantile(0.99, sum(rate({_POST}[5m])) by (verb, url, le))",
    f"histogram_quantile(0.99, sum(rate({_GET}[5m])) by (verb, url, le))",
    f"process_resident_memory_bytes{{{_HERE}}}",
    f"rate(process_cpu_seconds_total{{{_HERE}}}[5m])",
    f"go_goroutines{{{_HERE}}}",
)
"""kubernetes-mixin: the alerts KubeProxyDown and KubeProxyInstanceUnreachable, the instances that its
dashboard "Proxy" offers, and every panel (alerts/kube_proxy.libsonnet, dashboards/proxy.libsonnet)."""

SILENT = re.compile(r"absent\(|== 0|3\.\.|4\.\.|5\.\.|verb=.POST|<error>|[>] [0-9]+$")
"""Queries that find nothing as long as nothing goes wrong, and no Event is written."""

_FAILED = re.compile(r'expr: ("(?:[^"\\]|\\.)*"), time')

_FETCHED = Path(__file__).parents[2] / ".cache" / "promtool"
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(_FETCHED))


def why_no_promtool() -> str:
    """What tools/promtool said when it could not fetch it."""
    told = _FETCHED / "missing"
    return told.read_text().strip() if told.exists() else "tools/promtool was not run"


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason=f"promtool is not there: {why_no_promtool()}")


def promtool(*arguments: str, given: bytes = b"") -> tuple[int, list[str]]:
    """Its exit status, and the lines that it prints."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], input=given, capture_output=True, timeout=60, check=False)
    return done.returncode, [line for line in (done.stdout + done.stderr).decode().splitlines() if line]


def own() -> list[str]:
    """The expressions of the alerts and panels that kproxy brings along."""
    rule = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    found = [alert["expr"] for group in rule["spec"]["groups"] for alert in group["rules"]]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return found + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def without_answer(queries: Iterable[str], exposition: str, folder: Path) -> list[str]:
    """The queries that find no series in what was scraped, evaluated by promtool.

    Two scrapes a minute apart stand for a rate's two points.
    """
    scraped = [line.rpartition(" ") for line in exposition.splitlines() if not line.startswith("#")]
    series = [{"series": _labelled("up"), "values": "1 1"}]
    series += [{"series": _labelled(name), "values": f"{value} {value}"} for name, _, value in scraped]
    asked = list(queries)
    tests: list[dict[str, Any]] = [
        {"expr": f"count({_concrete(query)}) > bool 0", "eval_time": "1m", "exp_samples": [{"value": 1}]}
        for query in asked
    ]
    path = folder / "test.yaml"
    test = {"interval": "1m", "input_series": series, "promql_expr_test": tests}
    path.write_text(yaml.safe_dump({"tests": [test]}))
    status, told = promtool("test", "rules", str(path))
    failed = {json.loads(quoted) for quoted in _FAILED.findall("\n".join(told))}
    empty = [query for query, test in zip(asked, tests, strict=True) if test["expr"] in failed]
    assert (status == 0) == (not empty), told
    return empty


def _labelled(series: str) -> str:
    """A series with the labels that scraping adds."""
    name, _, rest = series.partition("{")
    labels = [*filter(None, [rest.removesuffix("}")]), 'job="kube-proxy"', 'instance="a"', 'node="node-a"']
    return f"{name}{{{','.join(labels)}}}"


def _concrete(query: str) -> str:
    """A panel's query with Grafana's variables filled in."""
    return query.replace("$__rate_interval", "5m").replace("$node", "node-a")
