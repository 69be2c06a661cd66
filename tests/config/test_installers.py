"""What installers of clusters give kube-proxy, files and command lines: kproxy starts with each of them."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from kproxy.cli.main import main
from kproxy.config.loading import read_file
from kproxy.config.model import ConntrackSettings, ProxyConfig, validate
from kproxy.config.translate import proxy_config

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

KUBEADM_1_18 = """\
bindAddress: 0.0.0.0
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /k/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpTimeout: 0s}
metricsBindAddress: ""
mode: ""
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
udpIdleTimeout: 0s
winkernel: {enableDSR: false, networkName: "", sourceVip: ""}
"""
KUBEADM_1_11 = """\
bindAddress: 0.0.0.0
clientConnection: {acceptContentTypes: "", burst: 10, kubeconfig: /k/kubeconfig.conf, qps: 5}
clusterCIDR: 10.244.0.0/16
conntrack: {max: null, maxPerCore: 32768, min: 131072, tcpEstablishedTimeout: 24h0m0s}
mode: ipvs
resourceContainer: /kube-proxy
udpIdleTimeout: 250ms
"""
KUBESPRAY = """\
bindAddress: 0.0.0.0
clientConnection:
 acceptContentTypes:
 kubeconfig:
clusterCIDR: 10.233.64.0/18
enableProfiling: False
hostnameOverride: "node1"
ipvs: {excludeCIDRs: [], minSyncPeriod: 0s, scheduler: rr, strictARP: True, udpTimeout: 0s}
mode: ipvs
nodePortAddresses: []
portRange:
"""
EKS = """\
bindAddress: 0.0.0.0
clientConnection: {contentType: application/vnd.kubernetes.protobuf, kubeconfig: /k/kubeconfig, qps: 5}
clusterCIDR: ""
hostnameOverride: ""
iptables: {masqueradeAll: false, masqueradeBit: 14, minSyncPeriod: 0s, syncPeriod: 30s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "rr", syncPeriod: 30s}
metricsBindAddress: 0.0.0.0:10249
mode: "iptables"
oomScoreAdj: -998
udpIdleTimeout: 250ms
"""
KIND = """\
mode: "nftables"
iptables: {minSyncPeriod: 1s}
conntrack: {maxPerCore: 0}
clusterCIDR: "10.244.0.0/16,fd00:10:244::/56"
"""
MINIKUBE = """\
clusterCIDR: "10.244.0.0/16"
metricsBindAddress: 0.0.0.0:10249
conntrack:
  maxPerCore: 0
# Skip setting "net.netfilter.nf_conntrack_tcp_timeout_established"
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
"""
GUIDE = """\
clientConnection: {kubeconfig: /k/kubeconfig}
clusterCIDR: 10.0.0.0/16
ipvs: {masqueradeAll: true, minSyncPeriod: 5s, scheduler: "rr", syncPeriod: 30s}
mode: "ipvs"
udpIdleTimeout: 250ms
"""

K3S = (
    "--cluster-cidr=10.42.0.0/16 --conntrack-max-per-core=0 --conntrack-tcp-timeout-close-wait=0s "
    "--conntrack-tcp-timeout-established=0s --healthz-bind-address=127.0.0.1 --hostname-override=Node-1 "
    "--kubeconfig=/k/kubeproxy.kubeconfig --proxy-mode=iptables"
)
KOPS = (
    "--cluster-cidr=100.96.0.0/11 --conntrack-max-per-core=131072 --hostname-override=node-1 "
    "--kubeconfig=/k/kubeconfig --master=https://api.internal.example.com --oom-score-adj=-998 --v=2"
)
GKE = (
    "--master=https://192.0.2.1 --kubeconfig=/k/kubeconfig --cluster-cidr=10.4.0.0/14 --oom-score-adj=-998 "
    "--v=2 --feature-gates=AllowServiceExternalIPs=true --iptables-sync-period=1m "
    "--iptables-min-sync-period=10s --ipvs-sync-period=1m --ipvs-min-sync-period=10s "
    "--detect-local-mode=NodeCIDR"
)
AKS = (
    "--conntrack-max-per-core=0 --metrics-bind-address=0.0.0.0:10249 --kubeconfig=/k/kubeconfig "
    "--cluster-cidr=10.244.0.0/16 --detect-local-mode=ClusterCIDR --pod-interface-name-prefix= --v=3"
)
AS_A_POD = "--hostname-override=node-1"


class Start(NamedTuple):
    """A file, or none; the flags; what kproxy works with; what is told to mean nothing."""

    file: str
    flags: str
    expected: dict[str, Any]
    without_effect: tuple[str, ...] = ()


KUBECONFIG = Path("/k/kubeconfig")
UNTOUCHED = ConntrackSettings(max_per_core=0, tcp_established_timeout=0.0, tcp_close_wait_timeout=0.0)
CONFIGMAP = {"kubeconfig": Path("/k/kubeconfig.conf"), "cluster_cidrs": ("10.244.0.0/16",)}
STARTS = {
    "kubeadm 1.18": Start(KUBEADM_1_18, AS_A_POD, CONFIGMAP, ("udpIdleTimeout",)),
    "kubeadm 1.11": Start(
        KUBEADM_1_11,
        AS_A_POD,
        CONFIGMAP | {"proxy_mode": "ipvs"},
        ("resourceContainer", "udpIdleTimeout"),
    ),
    "kubespray": Start(
        KUBESPRAY,
        "",
        {
            "node_name": "node1",
            "proxy_mode": "ipvs",
            "cluster_cidrs": ("10.233.64.0/18",),
            "ipvs_strict_arp": True,
        },
    ),
    "EKS": Start(
        EKS,
        AS_A_POD + " --v=2",
        {
            "kubeconfig": KUBECONFIG,
            "metrics_bind_address": "0.0.0.0:10249",
            "oom_score_adj": -998,
            "verbosity": 2,
        },
        ("udpIdleTimeout",),
    ),
    "kind": Start(
        KIND,
        AS_A_POD,
        {
            "proxy_mode": "nftables",
            "cluster_cidrs": ("10.244.0.0/16", "fd00:10:244::/56"),
            "conntrack": ConntrackSettings(max_per_core=0),
        },
    ),
    "minikube": Start(
        MINIKUBE,
        AS_A_POD,
        {
            "cluster_cidrs": ("10.244.0.0/16",),
            "metrics_bind_address": "0.0.0.0:10249",
            "conntrack": UNTOUCHED,
        },
    ),
    "from a guide": Start(
        GUIDE,
        AS_A_POD,
        {
            "kubeconfig": KUBECONFIG,
            "proxy_mode": "ipvs",
            "cluster_cidrs": ("10.0.0.0/16",),
            "min_sync_period": 5.0,
        },
        ("ipvs.masqueradeAll", "udpIdleTimeout"),
    ),
    "k3s": Start(
        "",
        K3S,
        {
            "kubeconfig": Path("/k/kubeproxy.kubeconfig"),
            "cluster_cidrs": ("10.42.0.0/16",),
            "healthz_bind_address": "127.0.0.1:10256",
            "conntrack": UNTOUCHED,
        },
    ),
    "kops": Start(
        "",
        KOPS,
        {
            "kubeconfig": KUBECONFIG,
            "cluster_cidrs": ("100.96.0.0/11",),
            "conntrack": ConntrackSettings(max_per_core=131072),
            "oom_score_adj": -998,
            "verbosity": 2,
        },
    ),
    "GKE": Start(
        "",
        GKE + " " + AS_A_POD,
        {
            "kubeconfig": KUBECONFIG,
            "cluster_cidrs": ("10.4.0.0/14",),
            "detect_local_mode": "NodeCIDR",
            "sync_period": 60.0,
            "min_sync_period": 10.0,
            "oom_score_adj": -998,
            "verbosity": 2,
        },
    ),
    "AKS": Start(
        "",
        AKS + " " + AS_A_POD,
        {
            "kubeconfig": KUBECONFIG,
            "cluster_cidrs": ("10.244.0.0/16",),
            "metrics_bind_address": "0.0.0.0:10249",
            "conntrack": ConntrackSettings(max_per_core=0),
            "verbosity": 3,
        },
    ),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_what_installers_give_kube_proxy_is_taken(start: Start, tmp_path: Path) -> None:
    file, out = tmp_path / "config.conf", tmp_path / "out.yaml"
    file.write_text(HEAD + start.file)
    arguments = [*(("--config", str(file)) if start.file else ()), *start.flags.split()]
    result = CliRunner().invoke(main, ["run", *arguments, "--write-config-to", str(out)])
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if "event=" in line]
    assert [line.partition("settings=")[2].strip('"') for line in told] == (
        [str(list(start.without_effect))] if start.without_effect else []
    )
    config = proxy_config(read_file(out), host="")
    validate(config)
    assert config == ProxyConfig(**({"node_name": "node-1"} | start.expected))
