"""A bad value is named by where it came from: its variable, its flag, or its field in the file."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kproxy.cli.main import main
from kproxy.cli.params import flag_name
from kproxy.cli.run import run

BAD: dict[str, str] = {
    "bind-address": "host",
    "cluster-cidr": "10.0.0.0/40",
    "detect-local-mode": "Guess",
    "feature-gates": "AllAlpha",
    "healthz-bind-address": "0.0.0.0:99999",
    "hostname-override": " ",
    "ipvs-exclude-cidrs": "10.0.0.0/8,x",
    "ipvs-scheduler": "quickest",
    "iptables-layout": "square",
    "iptables-variant": "ebtables",
    "kube-api-qps": "many",
    "kubeconfig": "/does/not/exist",
    "log-json-info-buffer-size": "big",
    "log-text-info-buffer-size": "big",
    "logging-format": "xml",
    "manifests": __file__,
    "metrics-bind-address": "::1",
    "nodeport-addresses": "primary,10.0.0.0/8",
    "proxy-mode": "userspace",
    "service-cidr": "10.96.0.0/33",
    "timeout": "-1s",
    "v": "high",
    "vmodule": "proxier",
}
"""A value that cannot be used, for flags of which not just any word is one."""

ANY_TEXT = {
    "config",
    "kube-api-content-type",
    "master",
    "metrics-bind-address",
    "pod-bridge-interface",
    "pod-interface-name-prefix",
    "show-hidden-metrics-for-version",
    "write-config-to",
}
FLAGS = sorted(
    {flag_name(option) for option in run.params if isinstance(option, click.Option) and option.envvar}
    - ANY_TEXT
)


def variable(flag: str) -> str:
    return "KPROXY_" + flag.upper().replace("-", "_")


def refused(*arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(main, arguments, env=environment, prog_name="kproxy")
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    return result.stderr.partition("Error: ")[2]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_bad_variable_is_named_as_the_variable(flag: str) -> None:
    value = BAD.get(flag, "nonsense")
    told = refused("run", **{variable(flag): value})
    assert variable(flag) in told
    assert f"--{flag}" not in told
    as_flag = refused("run", f"--{flag}={value}")
    assert as_flag == told.replace(variable(flag), f"--{flag}")


def test_what_contradicts_another_names_both_as_they_were_given() -> None:
    told = refused("run", "--iptables-sync-period=1s", KPROXY_IPTABLES_MIN_SYNC_PERIOD="2s")
    assert told == 'KPROXY_IPTABLES_MIN_SYNC_PERIOD: "2s" is longer than --iptables-sync-period, "1s"\n'
    told = refused("run", "--kubeconfig=/a", KPROXY_MANIFESTS="/")
    assert told == "KPROXY_MANIFESTS: excludes --kubeconfig\n"


def test_a_flag_that_beats_its_variable_is_named_as_the_flag() -> None:
    told = refused("run", "--cluster-cidr=here", KPROXY_CLUSTER_CIDR="there")
    assert told.startswith('--cluster-cidr: "here"')


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        ("bench", "repeats", "few"),
        ("bench", "sizes", "small"),
        ("bench", "limit", "long"),
        ("cleanup", "peer", "cilium"),
        ("check", "output", "xml"),
        ("check", "cluster-cidr", "x"),
        ("diff", "against", "/does/not/exist"),
        ("diff", "iptables-layout", "square"),
        ("render", "manifests", "/does/not/exist"),
        ("status", "output", "xml"),
        ("demo", "iptables-variant", "x"),
    ],
)
def test_other_commands_do_so_too(command: str, flag: str, value: str) -> None:
    told = refused(command, **{variable(flag): value})
    assert variable(flag) in told
    assert f"--{flag}" not in told


def test_a_file_is_named_by_its_path_and_its_field(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    told = refused("run", KPROXY_CONFIG=str(file))
    assert told == f"{file}: No such file or directory (the file that KPROXY_CONFIG names)\n"
    file.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: x\n"
    )
    told = refused("run", KPROXY_CONFIG=str(file), KPROXY_CLUSTER_CIDR="10.0.0.0/8")
    assert told.startswith(f'{file}: clusterCIDR: "x"')
