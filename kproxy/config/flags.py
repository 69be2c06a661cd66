"""What each flag stands for in the configuration, and which flags count next to a file.

The rule is kube-proxy's (cmd/kube-proxy/app/options.go, Complete): with --config the file is the whole
configuration, and flags that are also fields of it do not count, except --hostname-override and the logging
flags. Flags that are no field of KubeProxyConfiguration always count: --master and kproxy's own.
"""

from collections.abc import Mapping

import msgspec

from kproxy.config.codec import Defect, assign
from kproxy.config.documents import Settings, contradictions
from kproxy.config.values import host_port

FLAGS: Mapping[str, tuple[str, ...]] = {
    "bind-address": ("bindAddress",),
    "bind-address-hard-fail": ("bindAddressHardFail",),
    "cluster-cidr": ("clusterCIDR",),
    "config-sync-period": ("configSyncPeriod",),
    "conntrack-max-per-core": ("conntrack.maxPerCore",),
    "conntrack-min": ("conntrack.min",),
    "conntrack-tcp-be-liberal": ("conntrack.tcpBeLiberal",),
    "conntrack-tcp-timeout-close-wait": ("conntrack.tcpCloseWaitTimeout",),
    "conntrack-tcp-timeout-established": ("conntrack.tcpEstablishedTimeout",),
    "conntrack-udp-timeout": ("conntrack.udpTimeout",),
    "conntrack-udp-timeout-stream": ("conntrack.udpStreamTimeout",),
    "detect-local-mode": ("detectLocalMode",),
    "feature-gates": ("featureGates",),
    "healthz-bind-address": ("healthzBindAddress",),
    "hostname-override": ("hostnameOverride",),
    "iptables-localhost-nodeports": ("iptables.localhostNodePorts",),
    "iptables-masquerade-bit": ("iptables.masqueradeBit",),
    "iptables-min-sync-period": ("iptables.minSyncPeriod", "nftables.minSyncPeriod"),
    "iptables-sync-period": ("iptables.syncPeriod", "nftables.syncPeriod"),
    "ipvs-exclude-cidrs": ("ipvs.excludeCIDRs",),
    "ipvs-min-sync-period": ("ipvs.minSyncPeriod",),
    "ipvs-scheduler": ("ipvs.scheduler",),
    "ipvs-strict-arp": ("ipvs.strictARP",),
    "ipvs-sync-period": ("ipvs.syncPeriod",),
    "ipvs-tcp-timeout": ("ipvs.tcpTimeout",),
    "ipvs-tcpfin-timeout": ("ipvs.tcpFinTimeout",),
    "ipvs-udp-timeout": ("ipvs.udpTimeout",),
    "kube-api-burst": ("clientConnection.burst",),
    "kube-api-content-type": ("clientConnection.contentType",),
    "kube-api-qps": ("clientConnection.qps",),
    "kubeconfig": ("clientConnection.kubeconfig",),
    "log-flush-frequency": ("logging.flushFrequency",),
    "log-json-info-buffer-size": ("logging.options.json.infoBufferSize",),
    "log-json-split-stream": ("logging.options.json.splitStream",),
    "log-text-info-buffer-size": ("logging.options.text.infoBufferSize",),
    "log-text-split-stream": ("logging.options.text.splitStream",),
    "logging-format": ("logging.format",),
    "masquerade-all": ("iptables.masqueradeAll", "nftables.masqueradeAll"),
    "metrics-bind-address": ("metricsBindAddress",),
    "nodeport-addresses": ("nodePortAddresses",),
    "oom-score-adj": ("oomScoreAdj",),
    "pod-bridge-interface": ("detectLocal.bridgeInterface",),
    "pod-interface-name-prefix": ("detectLocal.interfaceNamePrefix",),
    "profiling": ("enableProfiling",),
    "proxy-mode": ("mode",),
    "show-hidden-metrics-for-version": ("showHiddenMetricsForVersion",),
    "v": ("logging.verbosity",),
    "vmodule": ("logging.vmodule",),
}
"""kube-proxy's flags -> paths in KubeProxyConfiguration."""

PORT_FLAGS: Mapping[str, str] = {
    "healthz-port": "healthz-bind-address",
    "metrics-port": "metrics-bind-address",
}
"""Deprecated flags and the ones that took their place: 0 turns the server off, anything else is the port of
an address that was given without one (addressFromDeprecatedFlags)."""

OWN_FLAGS: Mapping[str, str] = {
    "cleanup-on-exit": "cleanupOnExit",
    "external-ip-allowed-cidrs": "externalIPs.allowedCIDRs",
    "iptables-layout": "iptables.layout",
    "iptables-variant": "iptables.variant",
    "ipvs-graceful-period": "ipvs.gracefulPeriod",
    "manifests": "manifests",
    "metrics-service-limit": "metrics.serviceLimit",
    "nftables-reject-unallocated": "nftables.rejectUnallocated",
    "service-cidr": "nftables.serviceCIDRs",
}
"""kproxy's flags -> paths in KproxyConfiguration."""

PROCESS_FLAGS = frozenset({"cleanup", "config", "init-only", "master", "once", "timeout", "write-config-to"})
"""What this process shall do; no field of either document."""

_WITH_FILE = frozenset({"hostname-override", "logging-format", "v", "vmodule"})
_EMPTY_IS_UNSET = frozenset(
    {"bind-address", "detect-local-mode", "hostname-override", "ipvs-scheduler", "proxy-mode"}
)
_LISTS = frozenset({"external-ip-allowed-cidrs", "ipvs-exclude-cidrs", "nodeport-addresses", "service-cidr"})


def counts_with_file(flag: str) -> bool:
    """Whether a flag counts although --config is given."""
    return flag in _WITH_FILE or flag.startswith("log-") or flag not in {*FLAGS, *PORT_FLAGS}


def apply_flags(settings: Settings, flags: Mapping[str, object]) -> tuple[Settings, list[Defect]]:
    """Put what flags say (text, numbers, booleans) into the documents. Defects are named by flag."""
    kube, own = settings.kube, settings.own
    defects: list[Defect] = []
    for flag, value in _without_ports(flags, defects).items():
        if flag in _EMPTY_IS_UNSET and value == "":
            continue
        try:
            plain = _plain(flag, value)
        except ValueError as error:
            defects.append(Defect(f"--{flag}", str(error)))
            continue
        for path in FLAGS.get(flag, ()):
            kube, found = assign(kube, path, plain, f"--{flag}")
            defects += found
        if flag in OWN_FLAGS:
            own, found = assign(own, OWN_FLAGS[flag], plain, f"--{flag}")
            defects += found
    result = msgspec.structs.replace(settings, kube=kube, own=own)
    if flags:
        names = {path: f"--{flag}" for flag, paths in FLAGS.items() for path in paths}
        defects += contradictions(result, defects, lambda path: names.get(path, path))
    return result, list(dict.fromkeys(defects))


def _without_ports(flags: Mapping[str, object], defects: list[Defect]) -> dict[str, object]:
    """Turn the deprecated port flags into those that took their place."""
    result = {flag: value for flag, value in flags.items() if flag not in PORT_FLAGS}
    for flag, address in PORT_FLAGS.items():
        port = flags.get(flag)
        if not isinstance(port, int):
            continue
        if port == 0:
            result[address] = ""
        elif not 0 < port <= 65535:
            defects.append(Defect(f"--{flag}", f"{port} is not a port"))
        elif result.get(address):
            try:
                result[address] = host_port(str(result[address]), port)
            except ValueError:
                continue
    return result


def _plain(flag: str, value: object) -> object:
    """A flag's value as the file would have it."""
    if not isinstance(value, str):
        return value
    if flag in _LISTS:
        return [part.strip() for part in value.split(",") if part.strip()]
    if flag == "feature-gates":
        return {name: _boolean(name, text) for name, text in _pairs(value)}
    if flag == "vmodule":
        return [{"filePattern": name, "verbosity": _level(name, text)} for name, text in _pairs(value)]
    return value


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise ValueError(f'"{part}" is not name=value')
        pairs.append((name.strip(), value.strip()))
    return pairs


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in {"true", "false", "t", "f", "1", "0"}:
        raise ValueError(f'{name}: "{text}" is not true or false')
    return text.lower() in {"true", "t", "1"}


def _level(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f'{name}: "{text}" is not a verbosity')
    return int(text)
