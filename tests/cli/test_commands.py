"""The command line: flags in kube-proxy's forms, errors that say what to mend, render without root."""

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from kproxy import __version__
from kproxy.cli.main import main
from kproxy.state.problems import Problem
from kproxy.telemetry.http.server import Answer, HttpServer
from kproxy.telemetry.status import Condition, Pending, Status, encode

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
RENDER = ["render", "--manifests", str(EXAMPLES), "--node", "node-a"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments, prog_name="kproxy")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_render_prints_a_whole_restore_input() -> None:
    status, text, _ = run(*RENDER, "--cluster-cidr", "10.244.0.0/16")
    assert status == 0
    assert [line for line in text.splitlines() if line.startswith(("*", "COMMIT"))] == [
        "*mangle", "COMMIT", "*filter", "COMMIT", "*nat", "COMMIT",
    ]  # fmt: skip
    assert "! -s 10.244.0.0/16 -d 10.96.0.80/32" in text
    assert "10.244.1.10:8080" in text


def test_render_knows_both_families() -> None:
    _, text, _ = run(*RENDER, "--ip-family", "6")
    assert "-d fd00:10:96::80/128" in text
    assert "10.96.0.80" not in text


@pytest.mark.parametrize(
    ("flags", "present"),
    [
        (["--masquerade-all"], "-A KUBE-SVC-"),
        (["--iptables-masquerade-bit=15"], "0x8000/0x8000"),
        (["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"], "! -i cbr0"),
        (["--iptables-localhost-nodeports=false"], "! -d 127.0.0.0/8"),
    ],
)
def test_flags_reach_the_rules(flags: list[str], present: str) -> None:
    status, text, _ = run(*RENDER, *flags)
    assert status == 0
    assert present in text


def test_a_defect_is_a_warning_and_the_rest_is_rendered(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n"
        "spec: {clusterIP: 10.96.0.1, externalIPs: ['1.2.3.4 -j ACCEPT'], ports: [{port: 80}]}\n"
    )
    status, text, warnings = run("render", "--manifests", str(tmp_path))
    assert status == 0
    assert "-d 10.96.0.1/32" in text
    assert "1.2.3.4" not in text
    assert 'Service shop/web: spec.externalIPs[0]="1.2.3.4 -j ACCEPT": not an IP address' in warnings


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*RENDER, "--cluster-cidr", "10.0.0.0/40"], '--cluster-cidr: "10.0.0.0/40"'),
        ([*RENDER, "--detect-local-mode", "BridgeInterface"], '--pod-bridge-interface: ""'),
        ([*RENDER, "--detect-local-mode", "NodeCIDR", "--node", "nobody"], "no Node nobody"),
        (["run", "--iptables-sync-period", "soon"], '--iptables-sync-period: "soon" is not a duration'),
        (["run", "--kubeconfig", "/does/not/exist"], "does not exist"),
        (["run", "--proxy-mode", "magic"], "magic"),
        (["run", "--cleanup-iptables"], "No such option '--cleanup-iptables'"),
        (["run", "--version=1.36"], '--version: "1.36" is not true, false or raw'),
        (["diff", "--against", "/does/not/exist"], "does not exist"),
        (["nothing"], "No such command 'nothing'"),
    ],
)
def test_bad_flags_are_named(arguments: list[str], told: str) -> None:
    status, _, message = run(*arguments)
    assert status == 1
    assert told in message


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_commands_of_the_lab_say_where_it_is(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    assert main.get_command(click.Context(main), command) is not None
    monkeypatch.setattr("kproxy.cli.main._extensions", dict)
    status, _, message = run(command, "--anything")
    assert status == 1
    assert f"{command} needs kproxy's lab" in message
    assert f"`make {command}`" in message


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--version", f"kproxy, version {__version__}"),
        ("--version=true", f"kproxy, version {__version__}"),
        ("--version=raw", f'version="{__version__}" compiler="'),
    ],
)
def test_the_version_is_printed_in_both_forms_of_kubernetes_programs(flag: str, told: str) -> None:
    status, text, errors = run("run", flag, "--conntrack-min=-1")
    assert (status, text.startswith(told), errors) == (0, True, "")


def test_flags_can_come_from_the_environment() -> None:
    result = CliRunner().invoke(main, RENDER, env={"KPROXY_CLUSTER_CIDR": "10.9.0.0/16"})
    assert "! -s 10.9.0.0/16" in result.stdout


def test_render_takes_the_configuration_file_too(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
    file.write_text(head + "clusterCIDR: 10.9.0.0/16\n")
    status, text, log = run(*RENDER, "--config", str(file), "--masquerade-all")
    assert status == 0
    assert "! -s 10.9.0.0/16 -d 10.96.0.80/32" in text
    assert "flags_ignored flags=['--masquerade-all']" in log
    file.write_text(head + "clusterCIDR: 10.9.0.0\n")
    status, _, message = run(*RENDER, "--config", str(file))
    assert (status, 'clusterCIDR: "10.9.0.0" is not a CIDR' in message) == (1, True)


def test_addresses_that_are_none_are_named_all_at_once() -> None:
    flags = ["--metrics-bind-address", "10249", "--healthz-bind-address", "here:http"]
    status, _, errors = run("run", "--manifests", str(EXAMPLES), *flags)
    assert status == 1
    assert '--metrics-bind-address: "10249" is not IP:port' in errors
    assert '--healthz-bind-address: "here:http" is not IP:port' in errors


def test_an_address_without_a_host_is_this_node() -> None:
    status, _, errors = run("status", "--address", ":1")
    assert status == 1
    assert "http://127.0.0.1:1/status" in errors


@pytest.mark.parametrize("flags", [(), ("--wait", "--timeout", "0s")])
def test_status_says_where_it_found_no_agent(flags: tuple[str, ...]) -> None:
    status, text, errors = run("status", "--address", "127.0.0.1:1", *flags)
    assert (status, text) == (1, "")
    assert "http://127.0.0.1:1/status" in errors
    assert "Connection refused" in errors


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--timeout", "5s"), "--timeout needs --wait"),
        (("--wait", "--timeout", "5"), '"5" is not a duration'),
        (("--wait", "--timeout", "-5s"), '"-5s" is negative'),
    ],
)
def test_a_wait_is_asked_for_as_a_duration(flags: tuple[str, ...], told: str) -> None:
    status, _, errors = run("status", "--address", "127.0.0.1:1", *flags)
    assert (status, told in errors) == (1, True)


def test_status_names_its_exit_codes() -> None:
    status, text, _ = run("status", "--help")
    words = " ".join(text.split())
    assert status == 0
    assert all(
        code in words for code in ("0 if the agent is healthy", "1 if it is not", "3 if it is healthy")
    )


HEALTHY = Status(
    version="1",
    node="a",
    mode="iptables",
    since=datetime.now(UTC),
    healthy=True,
    node_eligible=True,
    pending=Pending(0, 0, None),
    families={},
    problems=[],
    rejected=[],
)
DEFECT = Problem("Service ns/a", "metadata.annotations", '"x"', "not an address")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"problems": [DEFECT]}, 3),
        ({"healthy": False, "problems": [DEFECT]}, 1),
        (
            {
                "healthy": False,
                "conditions": [Condition("WatchDown", "the watch is down", datetime.now(UTC))],
            },
            1,
        ),
    ],
)
@pytest.mark.parametrize("wait", [(), ("--wait", "--timeout", "0s")])
def test_status_exits_with_the_code_of_what_it_found(
    change: dict[str, object], code: int, wait: tuple[str, ...]
) -> None:
    found = msgspec.structs.replace(HEALTHY, **change)
    server = HttpServer("test", "127.0.0.1:0", {"/status": lambda: Answer(encode(found))})
    server.start()
    try:
        status, text, errors = run("status", "--address", f"127.0.0.1:{server.port}", "-o", "json", *wait)
    finally:
        server.stop()
    assert status == code
    assert msgspec.json.decode(text, type=Status) == found
    assert ("not healthy after 0s" in errors) == (code == 1 and bool(wait))
    assert all(each.message in errors for each in found.conditions if wait)
