"""Each alert fires for what it is about and for nothing else, evaluated by promtool over time."""

from pathlib import Path

import pytest
import yaml

from kproxy.telemetry.verdict import Cause, State
from tests.manifests.kustomize import one
from tests.manifests.openapi import load
from tests.manifests.queries import MONITORING, needs_promtool, promtool

RULES = one(load(MONITORING / "prometheusrule.yaml"), "PrometheusRule")["spec"]
NAMES = [alert["alert"] for group in RULES["groups"] for alert in group["rules"]]

NODE = 'job="kube-proxy",node="n1"'
FINE = {
    f"up{{{NODE}}}": "1x60",
    f'kproxy_sync_failures_total{{{NODE},ip_family="IPv4"}}': "5x60",
    f"kproxy_oldest_pending_change_seconds{{{NODE}}}": "0x60",
    f'kproxy_quarantined_services{{{NODE},ip_family="IPv4"}}': "0x60",
    f"kproxy_services_with_problems{{{NODE}}}": "0x60",
    f"kproxy_rejected_objects{{{NODE}}}": "0x60",
    f'kproxy_drift_found_total{{{NODE},ip_family="IPv4"}}': "7x60",
    f"kproxy_mode_refused{{{NODE}}}": "0x60",
    f"kproxy_network_policy_rejected{{{NODE}}}": "0x60",
    f'kproxy_network_policy_quarantined{{{NODE},ip_family="IPv6"}}': "0x60",
    f"kproxy_configuration_rejected{{{NODE}}}": "0x60",
    **{f'kproxy_state{{{NODE},state="{each}"}}': f"{int(each is State.HEALTHY)}x60" for each in State},
    **{f'kproxy_condition{{{NODE},reason="{each}"}}': "0x60" for each in Cause},
}
"""An hour of scrapes, one a minute, of an agent that works: values are written `VALUExTIMES`."""


def state(name: State) -> dict[str, str]:
    return {f'kproxy_state{{{NODE},state="{each}"}}': f"{int(each is name)}x60" for each in State}


def condition(*causes: Cause) -> dict[str, str]:
    return {f'kproxy_condition{{{NODE},reason="{each}"}}': "1x60" for each in causes}


@needs_promtool
@pytest.mark.parametrize(
    ("changes", "minute", "expected"),
    [
        ({}, 60, set()),
        ({f"up{{{NODE}}}": "0x60"}, 20, {"KproxyDown"}),
        (state(State.STARTING), 4, set()),
        (state(State.STARTING), 6, {"KproxyFailing"}),
        (state(State.FAILING), 6, {"KproxyFailing"}),
        (state(State.DEGRADED), 60, set()),
        (
            {f'kproxy_sync_failures_total{{{NODE},ip_family="IPv4"}}': "0+1x60"},
            20,
            {"KproxySyncFailing"},
        ),
        ({f"kproxy_oldest_pending_change_seconds{{{NODE}}}": "0+60x60"}, 5, {"KproxyChangesPending"}),
        (
            {f'kproxy_quarantined_services{{{NODE},ip_family="IPv4"}}': "1x60"},
            6,
            {"KproxyServiceQuarantined"},
        ),
        ({f"kproxy_services_with_problems{{{NODE}}}": "1x60"}, 16, {"KproxyServiceProblems"}),
        ({f"kproxy_rejected_objects{{{NODE}}}": "1x60"}, 16, {"KproxyServiceProblems"}),
        (
            {f'kproxy_drift_found_total{{{NODE},ip_family="IPv4"}}': "0+1x60"},
            40,
            {"KproxyRulesTamperedWith"},
        ),
        (condition(Cause.DRIFT_NOT_REPAIRED), 4, set()),
        (condition(Cause.DRIFT_NOT_REPAIRED), 6, {"KproxyDriftNotRepaired"}),
        (condition(Cause.COMPARISON_FAILING), 6, {"KproxyDriftNotRepaired"}),
        ({f"kproxy_configuration_rejected{{{NODE}}}": "1x60"}, 6, {"KproxyConfigurationRejected"}),
        ({f"kproxy_mode_refused{{{NODE}}}": "1x60"}, 6, {"KproxyModeRefused"}),
        (condition(Cause.POLICY_GAP), 6, {"KproxyNetworkPolicyGap"}),
        (condition(Cause.SETTING_REFUSED), 6, {"KproxySettingRefused"}),
        (condition(Cause.SOCKET_TABLE), 14, set()),
        (condition(Cause.SOCKET_TABLE), 16, {"KproxySocketTableUnused"}),
        ({f"kproxy_network_policy_rejected{{{NODE}}}": "1x60"}, 14, set()),
        ({f"kproxy_network_policy_rejected{{{NODE}}}": "1x60"}, 16, {"KproxyNetworkPolicyRefused"}),
        (
            {f'kproxy_network_policy_quarantined{{{NODE},ip_family="IPv6"}}': "1x60"},
            16,
            {"KproxyNetworkPolicyRefused"},
        ),
        (condition(Cause.WATCH_DOWN), 9, set()),
        (condition(Cause.WATCH_DOWN), 11, {"KproxyWatchStale"}),
    ],
    ids=str,
)
def test_alerts_fire_when_they_should(
    tmp_path: Path, changes: dict[str, str], minute: int, expected: set[str]
) -> None:
    assert changes.keys() <= FINE.keys()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    series = [{"series": name, "values": values} for name, values in {**FINE, **changes}.items()]
    tests = [
        {
            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0 or on() vector(0)',
            "eval_time": f"{minute}m",
            "exp_samples": [{"value": int(name in expected)}],
        }
        for name in NAMES
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": tests}
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    status, told = promtool("test", "rules", str(path))
    assert status == 0, "\n".join(told)


def test_the_verdict_and_the_alerts_use_the_same_words() -> None:
    """A reason without an alert of its own is one that makes the state `failing` or `starting`."""
    text = (MONITORING / "prometheusrule.yaml").read_text()
    own = {
        Cause.MODE_REFUSED: "kproxy_mode_refused",
        Cause.CONFIGURATION_REJECTED: "kproxy_configuration_rejected",
    }
    for cause in Cause:
        if cause.state is State.DEGRADED:
            assert own.get(cause, cause.value) in text
    runbook = (MONITORING.parents[1] / "RUNBOOK.md").read_text()
    assert all(
        f"`{cause.value}`" in runbook for cause in Cause if cause not in own and cause is not Cause.WATCH_DOWN
    )
