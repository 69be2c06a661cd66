"""The configuration file: what kubeadm writes, every field, and everything that can be wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kproxy.config.codec import flatten
from kproxy.config.documents import Settings, read_documents
from kproxy.config.loading import FileError, read_file, write_file
from kproxy.config.model import DETECT_LOCAL_MODES, PROXY_MODES, ConntrackSettings, ProxyConfig, validate
from kproxy.config.schema import KproxyConfiguration, KubeProxyConfiguration, VerbosityOfFiles
from kproxy.config.schema_modes import OwnIptables, OwnIpvs
from kproxy.config.translate import proxy_config, unknown_gates, unrestricted, without_effect
from kproxy.plan.schedulers import SCHEDULERS
from kproxy.telemetry.http.debug import configz

KUBEADM = Path(__file__).parent / "data" / "kubeadm-1.36.yaml"
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OWN_HEAD = "---\napiVersion: kproxy.io/v1alpha1\nkind: KproxyConfiguration\n"

# path | as written | as read
FIELDS: list[tuple[str, str, object]] = [
    ("featureGates", "{A: true, B: false}", {"A": True, "B": False}),
    ("clientConnection.kubeconfig", "/etc/k", "/etc/k"),
    ("clientConnection.acceptContentTypes", "application/json", "application/json"),
    ("clientConnection.contentType", "application/json", "application/json"),
    ("clientConnection.qps", "7", 7.0),
    ("clientConnection.qps", "1e+06", 1000000.0),
    ("clientConnection.burst", "20", 20),
    ("logging.format", "json", "json"),
    ("logging.flushFrequency", "1s", 1.0),
    ("logging.flushFrequency", "2000000000", 2.0),
    ("logging.verbosity", "4", 4),
    (
        "logging.vmodule",
        "[{filePattern: proxier, verbosity: 5}]",
        (VerbosityOfFiles(file_pattern="proxier", verbosity=5),),
    ),
    ("logging.options.text.splitStream", "true", True),
    ("logging.options.text.infoBufferSize", "512Ki", "512Ki"),
    ("logging.options.json.splitStream", "true", True),
    ("logging.options.json.infoBufferSize", "1", "1"),
    ("logging.options.json.infoBufferSize", "'1e3'", "1e3"),
    ("hostnameOverride", "node-a", "node-a"),
    ("bindAddress", "192.0.2.7", "192.0.2.7"),
    ("healthzBindAddress", "127.0.0.1:9999", "127.0.0.1:9999"),
    ("healthzBindAddress", "127.0.0.1", "127.0.0.1:10256"),
    ("metricsBindAddress", "'[::]:9998'", "[::]:9998"),
    ("metricsBindAddress", "'::1'", "[::1]:10249"),
    ("bindAddressHardFail", "true", True),
    ("enableProfiling", "true", True),
    ("showHiddenMetricsForVersion", "'1.35'", "1.35"),
    ("mode", "ipvs", "ipvs"),
    ("iptables.masqueradeBit", "0", 0),
    ("iptables.masqueradeAll", "true", True),
    ("iptables.localhostNodePorts", "false", False),
    ("iptables.syncPeriod", "1m", 60.0),
    ("iptables.minSyncPeriod", "10s", 10.0),
    ("ipvs.syncPeriod", "1m", 60.0),
    ("ipvs.minSyncPeriod", "10s", 10.0),
    ("ipvs.scheduler", "wlc", "wlc"),
    ("ipvs.excludeCIDRs", "[10.0.0.0/8, 'fd00::/8']", ("10.0.0.0/8", "fd00::/8")),
    ("ipvs.strictARP", "true", True),
    ("ipvs.tcpTimeout", "15m", 900.0),
    ("ipvs.tcpFinTimeout", "30s", 30.0),
    ("ipvs.udpTimeout", "1m", 60.0),
    ("nftables.masqueradeBit", "31", 31),
    ("nftables.masqueradeAll", "true", True),
    ("nftables.syncPeriod", "1m", 60.0),
    ("nftables.minSyncPeriod", "10s", 10.0),
    ("winkernel.networkName", "n", "n"),
    ("winkernel.sourceVip", "192.0.2.1", "192.0.2.1"),
    ("winkernel.enableDSR", "true", True),
    ("winkernel.rootHnsEndpointName", "n", "n"),
    ("winkernel.forwardHealthCheckVip", "true", True),
    ("detectLocalMode", "NodeCIDR", "NodeCIDR"),
    ("detectLocal.bridgeInterface", "cbr0", "cbr0"),
    ("detectLocal.interfaceNamePrefix", "veth", "veth"),
    ("clusterCIDR", "'10.244.0.0/16,fd00::/48'", "10.244.0.0/16,fd00::/48"),
    ("nodePortAddresses", "[primary]", ("primary",)),
    ("nodePortAddresses", "[192.0.2.0/24]", ("192.0.2.0/24",)),
    ("oomScoreAdj", "0", 0),
    ("conntrack.maxPerCore", "0", 0),
    ("conntrack.min", "7", 7),
    ("conntrack.tcpEstablishedTimeout", "0s", 0.0),
    ("conntrack.tcpCloseWaitTimeout", "5m", 300.0),
    ("conntrack.tcpBeLiberal", "true", True),
    ("conntrack.udpTimeout", "5s", 5.0),
    ("conntrack.udpStreamTimeout", "50s", 50.0),
    ("configSyncPeriod", "1m", 60.0),
    ("portRange", "300-400", "300-400"),
    ("windowsRunAsService", "true", True),
]


def nested(path: str, written: str) -> str:
    *outer, last = path.split(".")
    opening = "".join(f"{name}: {{" for name in outer)
    return f"{opening}{last}: {written}{'}' * len(outer)}\n"


def defects(text: str) -> list[str]:
    return [str(defect) for defect in read_documents(text)[1]]


def read(text: str) -> Settings:
    settings, found = read_documents(text)
    assert found == []
    return settings


def config(settings: Settings) -> ProxyConfig:
    made = proxy_config(settings, host="Host-1")
    validate(made)
    return made


def test_what_kubeadm_writes_works_unchanged() -> None:
    settings = read_file(KUBEADM)
    assert config(settings) == ProxyConfig(
        node_name="host-1",
        kubeconfig=Path("/var/lib/kube-proxy/kubeconfig.conf"),
        cluster_cidrs=("10.244.0.0/16",),
    )
    assert without_effect(settings.kube) == []


@pytest.mark.parametrize(("path", "written", "expected"), FIELDS)
def test_each_field_is_read(path: str, written: str, expected: object) -> None:
    found = dict(flatten(read(HEAD + nested(path, written)).kube))
    assert found[path] == expected
    default = dict(flatten(KubeProxyConfiguration()))
    assert {name for name in default if found[name] != default[name]} == {path}


def test_the_table_has_every_field() -> None:
    assert {path for path, _, _ in FIELDS} == {path for path, _ in flatten(KubeProxyConfiguration())}


@pytest.mark.parametrize("path", [path for path, _ in flatten(KubeProxyConfiguration())])
def test_null_is_the_default(path: str) -> None:
    assert read(HEAD + nested(path, "null")) == Settings()


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("iptables.syncPeriod", "0s"),
        ("iptables.minSyncPeriod", "0s"),
        ("ipvs.minSyncPeriod", "0s"),
        ("ipvs.scheduler", "''"),
        ("mode", "''"),
        ("detectLocalMode", "''"),
        ("healthzBindAddress", "''"),
        ("metricsBindAddress", "''"),
        ("bindAddress", "''"),
        ("clientConnection.qps", "0"),
        ("configSyncPeriod", "0s"),
        ("logging.format", "''"),
    ],
)
def test_an_empty_value_that_kubernetes_defaults_is_the_default(path: str, written: str) -> None:
    assert read(HEAD + nested(path, written)) == Settings()


def test_servers_follow_the_family_of_the_bind_address() -> None:
    kube = read(HEAD + "bindAddress: '::'\n").kube
    assert (kube.healthz_bind_address, kube.metrics_bind_address) == ("[::]:10256", "[::1]:10249")
    kube = read(HEAD + "bindAddress: '::'\nhealthzBindAddress: '[fd00::1]:1'\n").kube
    assert kube.healthz_bind_address == "[fd00::1]:1"


# what is written | what is told
DEFECTS: list[tuple[str, str]] = [
    ("iptables: {syncPeriod: 3x}", 'iptables.syncPeriod: "3x" is not a duration such as 30s, 1m30s or 100ms'),
    (
        "iptables: {syncPeriod: 30}",
        "iptables.syncPeriod: 30 is not a duration such as 30s, in quotes if need be",
    ),
    ("iptables: {syncPeriod: -30s}", 'iptables.syncPeriod: "-30s" is not greater than 0'),
    ("iptables: {minSyncPeriod: -1s}", 'iptables.minSyncPeriod: "-1s" is negative'),
    (
        "iptables: {minSyncPeriod: 31s}",
        'iptables.minSyncPeriod: "31s" is longer than iptables.syncPeriod, "30s"',
    ),
    (
        "nftables: {minSyncPeriod: 1m}",
        'nftables.minSyncPeriod: "1m0s" is longer than nftables.syncPeriod, "30s"',
    ),
    ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit: 32 is not within 0 and 31"),
    ("iptables: {masqueradeBit: 14.0}", "iptables.masqueradeBit: 14.0 is not a whole number of 32 bits"),
    ("iptables: {masqueradeBit: true}", "iptables.masqueradeBit: true is not a whole number of 32 bits"),
    ("iptables: {masqueradeAll: 'yes'}", 'iptables.masqueradeAll: "yes" is not true or false'),
    ("iptables: {masqueradAll: true}", "iptables.masqueradAll: unknown field, did you mean masqueradeAll?"),
    ("iptables: [1]", "iptables: [1] is not a mapping"),
    ("clustercidr: 10.0.0.0/8", "clustercidr: unknown field, did you mean clusterCIDR?"),
    ("udpIdleTimeOut: 1s", "udpIdleTimeOut: unknown field"),
    ("ipvs: {masqueradeBit: 3}", "ipvs.masqueradeBit: unknown field"),
    ("conntrack: 1", "conntrack: 1 is not a mapping"),
    ("clusterCIDR: 10.0.0.0", 'clusterCIDR: "10.0.0.0" is not a CIDR'),
    (
        "clusterCIDR: '10.0.0.0/8,11.0.0.0/8'",
        'clusterCIDR: "10.0.0.0/8,11.0.0.0/8" has more than one CIDR of a family',
    ),
    ("clusterCIDR: [10.0.0.0/8]", 'clusterCIDR: ["10.0.0.0/8"] is not text: put it in quotes'),
    ("mode: kernelspace", 'mode: "kernelspace" is not one of ' + ", ".join(PROXY_MODES)),
    (
        "mode: ebpf",
        (
            'mode: "ebpf" is no mode of kube-proxy: '
            "set it as `mode` of KproxyConfiguration (kproxy.io/v1alpha1) instead"
        ),
    ),
    ("detectLocalMode: Guess", 'detectLocalMode: "Guess" is not one of ' + ", ".join(DETECT_LOCAL_MODES)),
    (
        "detectLocalMode: BridgeInterface",
        (
            'detectLocal.bridgeInterface: "" is not an interface name, '
            "and detectLocalMode BridgeInterface needs one"
        ),
    ),
    (
        "{detectLocalMode: InterfaceNamePrefix, detectLocal: {interfaceNamePrefix: 'a b'}}",
        (
            'detectLocal.interfaceNamePrefix: "a b" is not an interface name, '
            "and detectLocalMode InterfaceNamePrefix needs one"
        ),
    ),
    ("nodePortAddresses: [10.0.0.0/8, x]", 'nodePortAddresses[1]: "x" is not a CIDR'),
    ("nodePortAddresses: 10.0.0.0/8", 'nodePortAddresses: "10.0.0.0/8" is not a list'),
    (
        "nodePortAddresses: [primary, 10.0.0.0/8]",
        'nodePortAddresses: "primary" cannot be combined with CIDRs',
    ),
    ("ipvs: {scheduler: fastest}", 'ipvs.scheduler: "fastest" is not one of ' + ", ".join(SCHEDULERS)),
    (
        "ipvs: {excludeCIDRs: [10.0.0.0/33]}",
        'ipvs.excludeCIDRs[0]: "10.0.0.0/33" is no CIDR: prefix length 33 is out of range for IPv4',
    ),
    ("ipvs: {tcpTimeout: 500ms}", 'ipvs.tcpTimeout: "500ms" is not 0 (leave as it is) or 1s to 2147483s'),
    ("bindAddress: localhost", 'bindAddress: "localhost" is not an IP address'),
    ("healthzBindAddress: localhost:1", 'healthzBindAddress: "localhost:1" is not IP:port'),
    ("healthzBindAddress: 0.0.0.0:0", 'healthzBindAddress: "0.0.0.0:0" is not IP:port'),
    ("metricsBindAddress: '::1:x'", 'metricsBindAddress: "::1:x" is not IP:port'),
    ("oomScoreAdj: -1001", "oomScoreAdj: -1001 is not within -1000 and 1000"),
    ("oomScoreAdj: 99999999999", "oomScoreAdj: 99999999999 is not a whole number of 32 bits"),
    ("conntrack: {min: -1}", "conntrack.min: -1 is negative"),
    ("conntrack: {udpTimeout: -1s}", 'conntrack.udpTimeout: "-1s" is negative'),
    ("clientConnection: {qps: fast}", 'clientConnection.qps: "fast" is not a number'),
    ("clientConnection: {qps: '5'}", 'clientConnection.qps: "5" is not a number'),
    ("clientConnection: {burst: -1}", "clientConnection.burst: -1 is negative"),
    ("featureGates: {A: maybe}", 'featureGates.A: "maybe" is not true or false'),
    ("featureGates: [A]", 'featureGates: ["A"] is not a mapping'),
    ("logging: {format: xml}", 'logging.format: "xml" is not one of text, json'),
    (
        "logging: {vmodule: [{filePatern: x}]}",
        "logging.vmodule[0].filePatern: unknown field, did you mean filePattern?",
    ),
    (
        "logging: {options: {json: {infoBufferSize: big}}}",
        'logging.options.json.infoBufferSize: "big" is not a quantity such as 0 or 512Ki',
    ),
    ("hostnameOverride: ' '", 'hostnameOverride: " " is blank'),
    ("healthzBindAddress: 'fe80::1%eth0'", 'healthzBindAddress: "fe80::1%eth0" is not IP:port'),
    ("hostnameOverride: 12", "hostnameOverride: 12 is not text: put it in quotes"),
    ("mode: iptables\nmode: ipvs", "line 4: the key 'mode' is there twice"),
]


@pytest.mark.parametrize(("written", "told"), DEFECTS)
def test_each_defect_is_reported_with_its_path(written: str, told: str) -> None:
    text = yaml.safe_dump(yaml.safe_load(written)) if written.startswith("{") else written
    assert defects(HEAD + text) == [told]


def test_all_defects_are_reported_together() -> None:
    text = HEAD + "mode: x\niptables: {syncPeriod: 3x, minSyncPeriod: 2m, foo: 1}\noomScoreAdj: 5000\n"
    text += OWN_HEAD + "iptables: {variant: bpf}\nipvs: {gracefulPeriod: -1s}\nmanifest: /m\n"
    text += "externalIPs: {allowedCIDRs: [10.0.0.1, 10.0.0.0/8]}\n"
    assert defects(text) == [
        f'mode: "x" is not one of {", ".join(PROXY_MODES)}',
        'iptables.syncPeriod: "3x" is not a duration such as 30s, 1m30s or 100ms',
        "iptables.foo: unknown field",
        "oomScoreAdj: 5000 is not within -1000 and 1000",
        'KproxyConfiguration iptables.variant: "bpf" is not one of legacy, nft',
        'KproxyConfiguration ipvs.gracefulPeriod: "-1s" is negative',
        "KproxyConfiguration manifest: unknown field, did you mean manifests?",
        'KproxyConfiguration externalIPs.allowedCIDRs[0]: "10.0.0.1" is not a CIDR',
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["(file): has no kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration"]),
        ("[1]", ["line 1: a document is not a mapping"]),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n",
            [
                (
                    'line 1: apiVersion "kubeproxy.config.k8s.io/v1", kind "KubeProxyConfiguration" is '
                    "neither kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration nor kproxy.io/v1alpha1 "
                    "KproxyConfiguration"
                )
            ],
        ),
        (HEAD + "---\n" + HEAD, ["line 4: a second KubeProxyConfiguration"]),
        (HEAD + "a: [", ["line 4: did not find expected node content, while parsing a flow node"]),
    ],
)
def test_a_file_that_is_something_else_is_refused(text: str, told: list[str]) -> None:
    found = defects(text)
    assert [line for line in found if "not first" not in line] == told


def test_kube_proxys_document_comes_first_for_it_reads_no_other() -> None:
    (told,) = defects(OWN_HEAD + "---\n" + HEAD)
    assert told.endswith("KubeProxyConfiguration is not first: kube-proxy reads no other")


def test_kproxys_own_settings_are_a_document_of_the_same_file() -> None:
    own = "manifests: /srv/m\niptables: {variant: legacy}\nipvs: {gracefulPeriod: 5m}\n"
    settings = read(HEAD + "clientConnection: {kubeconfig: /k}\n" + OWN_HEAD + own)
    assert settings.own == KproxyConfiguration(
        manifests="/srv/m", iptables=OwnIptables(variant="legacy"), ipvs=OwnIpvs(graceful_period=300.0)
    )
    made = config(settings)
    assert (made.manifests, made.kubeconfig) == (Path("/srv/m"), None)
    assert (made.iptables_variant, made.ipvs_graceful_period) == ("legacy", 300.0)


def test_every_setting_reaches_what_kproxy_works_with() -> None:
    text = HEAD + "".join(
        nested(path, written)
        for path, written in {path: written for path, written, _ in FIELDS}.items()
        if "." not in path
    )
    text += "conntrack: {maxPerCore: 1, min: 2, tcpEstablishedTimeout: 3s, tcpCloseWaitTimeout: 4s, "
    text += "tcpBeLiberal: true, udpTimeout: 5s, udpStreamTimeout: 6s}\n"
    text += "ipvs: {syncPeriod: 7m, minSyncPeriod: 8s, scheduler: sh, strictARP: true, tcpTimeout: 9s}\n"
    text += "iptables: {masqueradeBit: 3, masqueradeAll: true, localhostNodePorts: false, syncPeriod: 1s}\n"
    text += "logging: {verbosity: 5, format: json}\n"
    assert config(read(text)) == ProxyConfig(
        node_name="node-a",
        proxy_mode="ipvs",
        cluster_cidrs=("10.244.0.0/16", "fd00::/48"),
        detect_local_mode="NodeCIDR",
        masquerade_all=True,
        masquerade_bit=3,
        localhost_node_ports=False,
        sync_period=420.0,
        min_sync_period=8.0,
        node_port_addresses=("192.0.2.0/24",),
        bind_address="192.0.2.7",
        bind_address_hard_fail=True,
        healthz_bind_address="127.0.0.1:10256",
        metrics_bind_address="[::1]:10249",
        profiling=True,
        ipvs_scheduler="sh",
        ipvs_strict_arp=True,
        ipvs_tcp_timeout=9.0,
        conntrack=ConntrackSettings(
            max_per_core=1,
            min=2,
            tcp_established_timeout=3.0,
            tcp_close_wait_timeout=4.0,
            tcp_be_liberal=True,
            udp_timeout=5.0,
            udp_stream_timeout=6.0,
        ),
        oom_score_adj=0,
        verbosity=5,
        logging_format="json",
    )


def test_what_does_nothing_here_is_known() -> None:
    gates = "featureGates: {ContextualLogging: true, NoSuchGate: true}\n"
    kube = read(HEAD + gates + "winkernel: {enableDSR: true}\nconfigSyncPeriod: 1m\nportRange: ''\n").kube
    assert without_effect(kube) == [
        "configSyncPeriod",
        "featureGates.ContextualLogging",
        "winkernel.enableDSR",
    ]
    assert unknown_gates(kube) == ["NoSuchGate"]


@pytest.mark.parametrize(
    ("ranges", "cluster", "expected"),
    [
        ("[]", "10.244.0.0/16,fd00::/48", []),
        ("[primary]", "10.244.0.0/16,fd00::/48", []),
        ("[192.0.2.0/24]", "10.244.0.0/16", []),
        ("[192.0.2.0/24]", "10.244.0.0/16,fd00::/48", ["IPv6"]),
        ("[192.0.2.0/24]", "fd00::/48", ["IPv6"]),
        ("['2001:db8::/64']", "10.244.0.0/16,fd00::/48", ["IPv4"]),
        ("[192.0.2.0/24, '2001:db8::/64']", "10.244.0.0/16,fd00::/48", []),
        ("[192.0.2.0/24]", "", []),
    ],
)
def test_a_family_whose_node_ports_are_not_restricted_is_known(
    ranges: str, cluster: str, expected: list[str]
) -> None:
    kube = read(HEAD + f"nodePortAddresses: {ranges}\nclusterCIDR: '{cluster}'\n").kube
    assert unrestricted(kube) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["iptables", "syncPeriod", "conntrack", "min", "logging", "vmodule", "options"]
                )
                | st.text(max_size=4),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_document_does_more_than_be_refused(value: Any) -> None:
    plain = {**value, **yaml.safe_load(HEAD)} if isinstance(value, dict) else value
    settings, found = read_documents(yaml.safe_dump(plain, allow_unicode=True))
    if not found:
        validate(proxy_config(settings, host="host"))


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    text = HEAD + "".join(
        nested(*row[:2]) for row in FIELDS if row[0] in {"mode", "clusterCIDR", "bindAddress"}
    )
    settings = read(text + OWN_HEAD + "ipvs: {gracefulPeriod: 90s}\n")
    write_file(tmp_path / "out.yaml", settings)
    assert read_file(tmp_path / "out.yaml") == settings
    first = yaml.safe_load((tmp_path / "out.yaml").read_text().partition("---")[0])
    assert first["iptables"] == {
        "localhostNodePorts": True,
        "masqueradeAll": False,
        "masqueradeBit": 14,
        "minSyncPeriod": "100ms",
        "syncPeriod": "30s",
    }


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("mode: nftables", ["primary"]),
        ("mode: nftables\nnodePortAddresses: [10.0.0.0/8]", ["10.0.0.0/8"]),
        ("mode: iptables", []),
    ],
)
def test_configz_says_where_node_ports_answer(written: str, told: list[str]) -> None:
    page = json.loads(configz(read(HEAD + written)))
    assert page["kubeproxy.config.k8s.io"]["nodePortAddresses"] == told


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"\xff\xfe", "is not UTF-8"), (b"#" * (1 << 20) + b"#", "is larger than")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "config.conf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(FileError, match=told) as caught:
        read_file(file)
    assert all(problem.startswith(str(file)) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("", True),
        ("featureGates: {AllowServiceExternalIPs: true}\n", True),
        ("featureGates: {AllowServiceExternalIPs: false}\n", False),
    ],
)
def test_the_gate_of_external_addresses_has_its_effect(text: str, served: bool) -> None:
    settings = read(HEAD + text)
    assert proxy_config(settings, host="n").external_ips is served
    assert (without_effect(settings.kube), unknown_gates(settings.kube)) == ([], [])


@pytest.mark.parametrize(
    ("kube", "own", "mode", "period"),
    [
        ("mode: ipvs\n", "", "ipvs", 9.0),
        ("mode: ipvs\n", "mode: ebpf\n", "ebpf", 7.0),
        ("", "mode: ebpf\n", "ebpf", 7.0),
        ("mode: nftables\n", "mode: ipvs\n", "ipvs", 9.0),
    ],
)
def test_the_mode_of_the_own_document_counts_before_that_of_kube_proxy(
    kube: str, own: str, mode: str, period: float
) -> None:
    periods = "nftables: {syncPeriod: 7s}\nipvs: {syncPeriod: 9s}\n"
    config = proxy_config(read(HEAD + kube + periods + (OWN_HEAD + own if own else "")), host="n")
    assert (config.proxy_mode, config.sync_period) == (mode, period)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("mode: bpf", 'mode: "bpf" is not one of iptables, ipvs, nftables, ebpf'),
        ("ebpf: {cgroupRoot: sys}", 'ebpf.cgroupRoot: "sys" is not an absolute path'),
        ("ebpf: {pinDirectory: bpf/kproxy}", 'ebpf.pinDirectory: "bpf/kproxy" is not an absolute path'),
        (
            "ebpf: {pinDirectory: /kproxy}",
            'ebpf.pinDirectory: "/kproxy" is not a directory of its own, such as /sys/fs/bpf/kproxy',
        ),
        (
            "ebpf: {pinDirectory: /sys/fs/bpf/a.b}",
            'ebpf.pinDirectory: "/sys/fs/bpf/a.b" has a dot in its last name, which a bpffs refuses',
        ),
    ],
)
def test_defects_of_the_socket_tables_settings_are_named(written: str, told: str) -> None:
    assert defects(HEAD + OWN_HEAD + written) == [f"KproxyConfiguration {told}"]


def test_the_settings_of_the_socket_table_have_their_defaults_where_the_file_is_silent() -> None:
    config = proxy_config(read(HEAD + OWN_HEAD + "mode: ebpf\nebpf: {pinDirectory: ''}\n"), host="n")
    assert (config.ebpf_cgroup_root, config.ebpf_pin_directory) == ("", "/sys/fs/bpf/kproxy")
    assert config.ebpf_host_namespace_only is False
