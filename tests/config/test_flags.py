"""Flags, variables and the file: what each flag stands for, and which of them counts."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from kproxy.cli.main import main
from kproxy.cli.params import flag_name
from kproxy.cli.run import run
from kproxy.config.documents import Settings
from kproxy.config.flags import FLAGS, OWN_FLAGS, PORT_FLAGS, PROCESS_FLAGS
from kproxy.config.loading import CommandLine
from kproxy.config.schema import KubeProxyConfiguration
from kproxy.config.schema_modes import Iptables, Ipvs, Nftables
from kproxy.config.translate import proxy_config

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

# flag | value | path in the file that results | value there
VALUES: list[tuple[str, str, str, object]] = [
    ("bind-address", "192.0.2.7", "bindAddress", "192.0.2.7"),
    ("bind-address-hard-fail", "true", "bindAddressHardFail", True),
    ("cluster-cidr", "10.1.0.0/16,fd00::/48", "clusterCIDR", "10.1.0.0/16,fd00::/48"),
    ("config-sync-period", "1m", "configSyncPeriod", "1m0s"),
    ("conntrack-max-per-core", "0", "conntrack.maxPerCore", 0),
    ("conntrack-min", "7", "conntrack.min", 7),
    ("conntrack-tcp-be-liberal", "true", "conntrack.tcpBeLiberal", True),
    ("conntrack-tcp-timeout-close-wait", "0", "conntrack.tcpCloseWaitTimeout", "0s"),
    ("conntrack-tcp-timeout-established", "1h", "conntrack.tcpEstablishedTimeout", "1h0m0s"),
    ("conntrack-udp-timeout", "5s", "conntrack.udpTimeout", "5s"),
    ("conntrack-udp-timeout-stream", "6s", "conntrack.udpStreamTimeout", "6s"),
    ("detect-local-mode", "NodeCIDR", "detectLocalMode", "NodeCIDR"),
    ("feature-gates", "A=true, B=false", "featureGates", {"A": True, "B": False}),
    ("feature-gates", "A=T,B=f,C=1", "featureGates", {"A": True, "B": False, "C": True}),
    ("feature-gates", "A=TRUE,B=0", "featureGates", {"A": True, "B": False}),
    ("healthz-bind-address", "", "healthzBindAddress", ""),
    ("healthz-bind-address", "127.0.0.1", "healthzBindAddress", "127.0.0.1:10256"),
    ("healthz-port", "0", "healthzBindAddress", ""),
    ("hostname-override", "node-a", "hostnameOverride", "node-a"),
    ("iptables-localhost-nodeports", "false", "iptables.localhostNodePorts", False),
    ("iptables-masquerade-bit", "3", "iptables.masqueradeBit", 3),
    ("iptables-min-sync-period", "0", "iptables.minSyncPeriod", "0s"),
    ("iptables-min-sync-period", "2s", "nftables.minSyncPeriod", "2s"),
    ("iptables-sync-period", "1m", "iptables.syncPeriod", "1m0s"),
    ("iptables-sync-period", "1m", "nftables.syncPeriod", "1m0s"),
    ("ipvs-exclude-cidrs", "10.0.0.0/8, fd00::/8", "ipvs.excludeCIDRs", ["10.0.0.0/8", "fd00::/8"]),
    ("ipvs-min-sync-period", "2s", "ipvs.minSyncPeriod", "2s"),
    ("ipvs-scheduler", "mh,mh-port", "ipvs.scheduler", "mh,mh-port"),
    ("ipvs-strict-arp", "true", "ipvs.strictARP", True),
    ("ipvs-sync-period", "1m", "ipvs.syncPeriod", "1m0s"),
    ("ipvs-tcp-timeout", "15m", "ipvs.tcpTimeout", "15m0s"),
    ("ipvs-tcpfin-timeout", "30s", "ipvs.tcpFinTimeout", "30s"),
    ("ipvs-udp-timeout", "1m", "ipvs.udpTimeout", "1m0s"),
    ("kube-api-burst", "20", "clientConnection.burst", 20),
    ("kube-api-content-type", "application/json", "clientConnection.contentType", "application/json"),
    ("kube-api-qps", "7.5", "clientConnection.qps", 7.5),
    ("kubeconfig", "/dev/null", "clientConnection.kubeconfig", "/dev/null"),
    ("log-flush-frequency", "1s", "logging.flushFrequency", "1s"),
    ("log-json-info-buffer-size", "1Ki", "logging.options.json.infoBufferSize", "1Ki"),
    ("log-json-split-stream", "true", "logging.options.json.splitStream", True),
    ("log-text-info-buffer-size", "1Ki", "logging.options.text.infoBufferSize", "1Ki"),
    ("log-text-split-stream", "true", "logging.options.text.splitStream", True),
    ("logging-format", "json", "logging.format", "json"),
    ("masquerade-all", "true", "iptables.masqueradeAll", True),
    ("masquerade-all", "true", "nftables.masqueradeAll", True),
    ("metrics-bind-address", "[::1]:1", "metricsBindAddress", "[::1]:1"),
    ("metrics-port", "0", "metricsBindAddress", ""),
    ("nodeport-addresses", "primary", "nodePortAddresses", ["primary"]),
    ("oom-score-adj", "0", "oomScoreAdj", 0),
    ("pod-bridge-interface", "cbr0", "detectLocal.bridgeInterface", "cbr0"),
    ("pod-interface-name-prefix", "veth", "detectLocal.interfaceNamePrefix", "veth"),
    ("profiling", "true", "enableProfiling", True),
    ("proxy-mode", "ipvs", "mode", "ipvs"),
    ("show-hidden-metrics-for-version", "1.35", "showHiddenMetricsForVersion", "1.35"),
    ("v", "4", "logging.verbosity", 4),
    ("vmodule", "proxier=5", "logging.vmodule", [{"filePattern": "proxier", "verbosity": 5}]),
]
OWN_VALUES: list[tuple[str, str, str, object]] = [
    ("cleanup-on-exit", "true", "cleanupOnExit", True),
    ("iptables-layout", "scalable", "iptables.layout", "scalable"),
    ("iptables-variant", "legacy", "iptables.variant", "legacy"),
    ("ipvs-graceful-period", "5m", "ipvs.gracefulPeriod", "5m0s"),
    ("manifests", "/srv/m", "manifests", "/srv/m"),
    ("ebpf-cgroup-root", "/sys/fs/cgroup", "ebpf.cgroupRoot", "/sys/fs/cgroup"),
    ("ebpf-host-namespace-only", "true", "ebpf.hostNamespaceOnly", True),
    ("ebpf-pin-directory", "/sys/fs/bpf/other", "ebpf.pinDirectory", "/sys/fs/bpf/other"),
    ("nftables-reject-unallocated", "false", "nftables.rejectUnallocated", False),
    (
        "external-ip-allowed-cidrs",
        "198.51.100.0/24, 2001:db8::/32",
        "externalIPs.allowedCIDRs",
        ["198.51.100.0/24", "2001:db8::/32"],
    ),
    ("service-cidr", "10.96.0.0/12", "nftables.serviceCIDRs", ["10.96.0.0/12"]),
    ("limit-elements-per-service", "7", "limits.elementsPerService", 7),
    ("limit-endpoints-per-port", "7", "limits.endpointsPerPort", 7),
    ("limit-endpoints-per-service", "7", "limits.endpointsPerService", 7),
    ("limit-frontends-per-service", "7", "limits.frontendsPerService", 7),
    ("limit-log-lines-per-minute", "7", "limits.logLinesPerMinute", 7),
    ("limit-ports-per-service", "7", "limits.portsPerService", 7),
    ("limit-source-ranges-per-service", "7", "limits.sourceRangesPerService", 7),
    ("metrics-service-limit", "9", "metrics.serviceLimit", 9),
    ("network-policy", "true", "networkPolicy.enabled", True),
    ("network-policy-keep-connections", "true", "networkPolicy.keepConnections", True),
    ("network-policy-reject", "true", "networkPolicy.reject", True),
    ("network-policy-unknown-pods", "drop", "networkPolicy.unknownPods", "drop"),
]


def at(document: dict[str, Any], path: str) -> object:
    value: Any = document
    for name in path.split("."):
        value = value[name]
    return value


def written(
    directory: Path, *arguments: str, environment: dict[str, str] | None = None
) -> tuple[list[dict[str, Any]], str]:
    """The documents that `kproxy run --write-config-to` writes, and its log."""
    out = directory / "out.yaml"
    result = CliRunner().invoke(
        main, ["run", *arguments, "--write-config-to", str(out)], env=environment, prog_name="kproxy"
    )
    assert result.exit_code == 0, result.output
    return list(yaml.safe_load_all(out.read_text())), result.stderr


def refused(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["run", *arguments], env=environment, prog_name="kproxy")
    assert isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


@pytest.mark.parametrize(("flag", "value", "path", "expected"), VALUES + OWN_VALUES)
def test_each_flag_and_its_variable_is_a_field_of_the_file(
    flag: str, value: str, path: str, expected: object, tmp_path: Path
) -> None:
    own = flag in OWN_FLAGS
    documents, _ = written(tmp_path, f"--{flag}={value}")
    assert at(documents[own], path) == expected
    if flag in PORT_FLAGS:
        return
    variable = {"KPROXY_" + flag.upper().replace("-", "_"): value}
    documents, _ = written(tmp_path, environment=variable)
    if value:
        assert at(documents[own], path) == expected


def test_a_mode_that_kube_proxy_does_not_have_goes_into_the_own_document(tmp_path: Path) -> None:
    (kube, own), _ = written(tmp_path, "--proxy-mode=ebpf")
    assert (kube["mode"], own["mode"]) == ("iptables", "ebpf")
    (kube, own), _ = written(tmp_path, environment={"KPROXY_PROXY_MODE": "ebpf"})
    assert (kube["mode"], own["mode"]) == ("iptables", "ebpf")


def test_a_mode_of_kube_proxy_leaves_no_mode_in_the_own_document(tmp_path: Path) -> None:
    documents, _ = written(tmp_path, "--proxy-mode=nftables")
    assert [each["mode"] for each in documents] == ["nftables"]


def test_the_tables_have_every_flag() -> None:
    tabled = {flag for flag, *_ in VALUES + OWN_VALUES}
    assert tabled == {*FLAGS, *PORT_FLAGS, *OWN_FLAGS}
    options = {flag_name(option) for option in run.params}
    assert options - {"version"} == {*FLAGS, *PORT_FLAGS, *OWN_FLAGS, *PROCESS_FLAGS}


@pytest.mark.parametrize(
    ("arguments", "path", "expected"),
    [
        (["-v=4"], "logging.verbosity", 4),
        (["-v4"], "logging.verbosity", 4),
        (["-v", "4"], "logging.verbosity", 4),
        (["--cluster_cidr=10.1.0.0/16"], "clusterCIDR", "10.1.0.0/16"),
        (["--proxy-mode="], "mode", "iptables"),
        (["--detect-local-mode="], "detectLocalMode", "ClusterCIDR"),
        (["--ipvs-scheduler="], "ipvs.scheduler", "rr"),
        (["--bind-address="], "bindAddress", "0.0.0.0"),
        (
            ["--nodeport-addresses=10.0.0.0/8,192.0.2.0/24", "--nodeport-addresses", "fd00::/8"],
            "nodePortAddresses",
            ["10.0.0.0/8", "192.0.2.0/24", "fd00::/8"],
        ),
        (
            ["--ipvs-exclude-cidrs=10.0.0.0/8", "--ipvs-exclude-cidrs=fd00::/8"],
            "ipvs.excludeCIDRs",
            ["10.0.0.0/8", "fd00::/8"],
        ),
        (["--feature-gates=A=true", "--feature-gates=B=false"], "featureGates", {"A": True, "B": False}),
    ],
)
def test_flags_are_written_as_go_programs_take_them(
    arguments: list[str], path: str, expected: object, tmp_path: Path
) -> None:
    (kube,), _ = written(tmp_path, *arguments)
    assert at(kube, path) == expected


def test_a_switch_needs_no_value(tmp_path: Path) -> None:
    (kube,), _ = written(tmp_path, "--masquerade-all", "--ipvs-strict-arp=false")
    assert (kube["iptables"]["masqueradeAll"], kube["ipvs"]["strictARP"]) == (True, False)


def test_a_flag_beats_its_variable(tmp_path: Path) -> None:
    (kube,), _ = written(
        tmp_path, "--cluster-cidr=10.1.0.0/16", environment={"KPROXY_CLUSTER_CIDR": "10.2.0.0/16"}
    )
    assert kube["clusterCIDR"] == "10.1.0.0/16"


def test_the_variables_that_a_service_brings_along_are_no_flags(tmp_path: Path) -> None:
    (kube,), _ = written(tmp_path, environment={"KPROXY_METRICS_PORT": "tcp://10.96.0.7:10249"})
    assert kube["metricsBindAddress"] == "127.0.0.1:10249"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--healthz-port=9"], "0.0.0.0:10256"),
        (["--healthz-bind-address=127.0.0.1", "--healthz-port=9"], "127.0.0.1:9"),
        (["--healthz-bind-address=127.0.0.1:8", "--healthz-port=9"], "127.0.0.1:8"),
        (["--healthz-bind-address=127.0.0.1:8", "--healthz-port=0"], ""),
    ],
)
def test_a_deprecated_port_counts_for_an_address_without_one(
    flags: list[str], expected: str, tmp_path: Path
) -> None:
    (kube,), _ = written(tmp_path, *flags)
    assert kube["healthzBindAddress"] == expected


@pytest.mark.parametrize(("flag", "value", "path", "expected"), VALUES)
def test_next_to_a_file_only_the_name_and_the_logs_count(
    flag: str, value: str, path: str, expected: object, tmp_path: Path
) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD)
    without, _ = written(tmp_path, f"--config={file}")
    documents, log = written(tmp_path, f"--config={file}", f"--{flag}={value}")
    if flag == "hostname-override" or flag in {"v", "vmodule"} or flag.startswith("log"):
        assert at(documents[0], path) == expected
        assert "flags_ignored" not in log
    else:
        assert documents == without
        assert f"flags_ignored flags=['--{flag}']" in log


@pytest.mark.parametrize(("flag", "value", "path", "expected"), OWN_VALUES)
def test_kproxys_own_flags_beat_the_file(
    flag: str, value: str, path: str, expected: object, tmp_path: Path
) -> None:
    file = tmp_path / "config.conf"
    own = "manifests: /srv/other\niptables: {variant: nft}\nipvs: {gracefulPeriod: 1m}\n"
    file.write_text(f"{HEAD}---\napiVersion: kproxy.io/v1alpha1\nkind: KproxyConfiguration\n{own}")
    documents, log = written(tmp_path, f"--config={file}", f"--{flag}={value}")
    assert at(documents[1], path) == expected
    assert "flags_ignored" not in log


def test_a_variable_counts_next_to_a_file_as_its_flag_does(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + "clusterCIDR: 10.1.0.0/16\n")
    given = {
        "KPROXY_CONFIG": str(file),
        "KPROXY_CLUSTER_CIDR": "10.2.0.0/16",
        "KPROXY_HOSTNAME_OVERRIDE": "n",
    }
    (kube,), log = written(tmp_path, environment=given)
    assert (kube["clusterCIDR"], kube["hostnameOverride"]) == ("10.1.0.0/16", "n")
    assert "flags_ignored flags=['--cluster-cidr']" in log


def test_an_empty_path_is_none(tmp_path: Path) -> None:
    documents, _ = written(tmp_path, "--config=", "--kubeconfig=", "--manifests=")
    (kube,) = documents
    assert kube["clientConnection"]["kubeconfig"] == ""
    given = {"KPROXY_KUBECONFIG": "/srv/kubeconfig"}
    (kube,), _ = written(tmp_path, "--kubeconfig=", environment=given)
    assert kube["clientConnection"]["kubeconfig"] == ""


def test_an_empty_name_leaves_the_one_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + "hostnameOverride: node-a\n")
    (kube,), _ = written(tmp_path, f"--config={file}", "--hostname-override=")
    assert kube["hostnameOverride"] == "node-a"


def test_what_does_nothing_is_said_in_one_line(tmp_path: Path) -> None:
    _, log = written(
        tmp_path,
        "--profiling",
        "--kube-api-qps=50",
        "--feature-gates=ContextualLogging=true,AllowServiceExternalIPs=false,Nope=true",
    )
    lines = [line for line in log.splitlines() if "settings_without_effect" in line]
    assert len(lines) == 1
    assert "['clientConnection.qps', 'featureGates.ContextualLogging']" in lines[0]
    assert "unknown_feature_gates gates=['Nope']" in log


def test_node_ports_open_in_one_family_are_a_warning(tmp_path: Path) -> None:
    given = ["--cluster-cidr=10.244.0.0/16,fd00::/48", "--nodeport-addresses=192.0.2.0/24"]
    _, log = written(tmp_path, *given)
    assert "level=warning event=node_ports_everywhere families=['IPv6']" in log
    _, log = written(tmp_path, *given, "--nodeport-addresses=::/0")
    assert log == ""


def test_all_bad_flags_are_reported_together() -> None:
    status, told = refused(
        "--iptables-sync-period=1x",
        "--oom-score-adj=5000",
        "--feature-gates=A=maybe",
        "--vmodule=a",
        "--healthz-port=70000",
        "--nodeport-addresses=primary,10.0.0.0/8",
        "--ipvs-min-sync-period=1m",
        "--proxy-mode=userspace",
        "--masquerade-all=maybe",
        "--conntrack-min=1k",
        "--hostname-override= ",
    )
    assert status == 1
    assert told.splitlines()[3:] == [
        "Error: --proxy-mode: 'userspace' is not one of 'iptables', 'ipvs', 'nftables', 'ebpf'",
        "--masquerade-all: 'maybe' is not a valid boolean",
        "--conntrack-min: '1k' is not a valid integer",
        "--healthz-port: 70000 is not a port",
        '--hostname-override: " " is blank',
        '--feature-gates: A: "maybe" is not true or false',
        '--iptables-sync-period: "1x" is not a duration such as 30s, 1m30s or 100ms',
        "--oom-score-adj: 5000 is not within -1000 and 1000",
        '--vmodule: "a" is not name=value',
        '--ipvs-min-sync-period: "1m0s" is longer than --ipvs-sync-period, "30s"',
        '--nodeport-addresses: "primary" cannot be combined with CIDRs',
    ]


@pytest.mark.parametrize("level", ["", "x", "-1", "1.5", "٣", "²"])
def test_a_verbosity_is_a_whole_number_in_ascii(level: str) -> None:
    status, told = refused(f"--vmodule=proxier={level}")
    assert (status, told.splitlines()[-1]) == (1, f'Error: --vmodule: proxier: "{level}" is not a verbosity')


def test_a_bad_file_exits_with_status_1(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + "iptables: {syncPeriod: 3x}\nfoo: 1\n")
    status, told = refused(f"--config={file}")
    assert status == 1
    assert told.splitlines() == [
        f'Error: {file}: iptables.syncPeriod: "3x" is not a duration such as 30s, 1m30s or 100ms',
        f"{file}: foo: unknown field",
    ]


def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + f"clientConnection: {{kubeconfig: {tmp_path}/none}}\n")
    status, told = refused(f"--config={file}")
    assert status == 1
    assert f'clientConnection.kubeconfig: "{tmp_path}/none" does not exist or cannot be read' in told


def test_manifests_and_a_kubeconfig_exclude_each_other() -> None:
    status, told = refused("--manifests=/srv", "--kubeconfig=/dev/null")
    assert (status, "--manifests: excludes --kubeconfig" in told) == (1, True)


def test_what_is_no_field_reaches_the_process_too() -> None:
    given = CommandLine(
        None, {"master": "https://192.0.2.1:6443", "once": True, "hostname-override": " Node-A "}
    )
    config = given.resolve(given.load())
    assert (config.master, config.once, config.node_name) == ("https://192.0.2.1:6443", True, "node-a")


@pytest.mark.parametrize(
    ("mode", "bit", "everything", "periods"),
    [
        ("iptables", 1, True, (10.0, 1.0)),
        ("ipvs", 1, True, (20.0, 2.0)),
        ("nftables", 3, False, (30.0, 3.0)),
    ],
)
def test_each_mode_takes_its_own_section(
    mode: str, bit: int, everything: bool, periods: tuple[float, float]
) -> None:
    kube = KubeProxyConfiguration(
        mode=mode,
        iptables=Iptables(masquerade_bit=1, masquerade_all=True, sync_period=10.0, min_sync_period=1.0),
        ipvs=Ipvs(sync_period=20.0, min_sync_period=2.0),
        nftables=Nftables(masquerade_bit=3, sync_period=30.0, min_sync_period=3.0),
    )
    config = proxy_config(Settings(kube), host="host")
    assert (config.masquerade_bit, config.masquerade_all) == (bit, everything)
    assert (config.sync_period, config.min_sync_period) == periods
