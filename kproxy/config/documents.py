"""Parse the text of a configuration file into both documents and find every defect in it."""

import ipaddress
from collections.abc import Callable, Collection, Iterator

import msgspec

from kproxy.config.codec import Defect, decode, replace
from kproxy.config.durations import format_duration
from kproxy.config.modes import TRAITS, traits_of
from kproxy.config.schema import (
    KPROXY,
    KUBE_PROXY,
    OBSOLETE,
    KproxyConfiguration,
    KubeProxyConfiguration,
)
from kproxy.config.schema_modes import Iptables, Ipvs, Nftables
from kproxy.config.values import PRIMARY, is_interface
from kproxy.sources.yaml_documents import ManifestSyntaxError, yaml_documents
from kproxy.state.problems import show


class Settings(msgspec.Struct, frozen=True):
    """Both documents. `obsolete`: paths that are set in the first and that only older kube-proxies have."""

    kube: KubeProxyConfiguration = KubeProxyConfiguration()
    own: KproxyConfiguration = KproxyConfiguration()
    obsolete: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        """The proxy mode: that of kproxy's own document, or else that of kube-proxy's."""
        return self.own.mode or self.kube.mode

    def with_mode(self, mode: str) -> "Settings":
        """The settings with another mode, in the document that can name it. Raises ValueError."""
        if traits_of(mode).own:
            return msgspec.structs.replace(self, own=replace(self.own, "mode", mode))
        kube, own = replace(self.kube, "mode", mode), replace(self.own, "mode", "")
        return msgspec.structs.replace(self, kube=kube, own=own)


def read_documents(text: str) -> tuple[Settings, list[Defect]]:
    """Read YAML or JSON. Defective values have their default in the result."""
    settings = Settings()
    defects: list[Defect] = []
    seen: list[tuple[object, object]] = []
    try:
        for document in yaml_documents(text):
            defects += [Defect(f"line {fault.line}", fault.reason) for fault in document.faults]
            if not isinstance(document.value, dict):
                defects.append(Defect(f"line {document.line}", "a document is not a mapping"))
                continue
            plain = dict(document.value)
            named = (plain.pop("apiVersion", None), plain.pop("kind", None))
            if named in seen:
                defects.append(Defect(f"line {document.line}", f"a second {named[1]}"))
            seen.append(named)
            if named == KUBE_PROXY:
                if len(seen) > 1:
                    defects.append(
                        Defect(f"line {document.line}", f"{named[1]} is not first: kube-proxy reads no other")
                    )
                plain, obsolete = _without_obsolete(plain)
                kube, found = decode(KubeProxyConfiguration, _with_addresses(plain))
                settings = msgspec.structs.replace(settings, kube=kube, obsolete=obsolete)
                defects += found
            elif named == KPROXY:
                own, found = decode(KproxyConfiguration, plain)
                settings = msgspec.structs.replace(settings, own=own)
                defects += [Defect(f"{KPROXY[1]} {defect.path}", defect.text) for defect in found]
            else:
                named_as = f"apiVersion {show(named[0])}, kind {show(named[1])}"
                known = f"neither {' '.join(KUBE_PROXY)} nor {' '.join(KPROXY)}"
                defects.append(Defect(f"line {document.line}", f"{named_as} is {known}"))
    except ManifestSyntaxError as error:
        defects.append(Defect(f"line {error.line}", error.reason))
    if KUBE_PROXY not in seen and not defects:
        defects.append(Defect("(file)", f"has no {' '.join(KUBE_PROXY)}"))
    return settings, defects + contradictions(settings, defects)


def contradictions(
    settings: Settings, known: Collection[Defect], label: Callable[[str], str] = str
) -> list[Defect]:
    """Find values that are valid alone and invalid together. `label` maps a path to the name to report.

    Values with a `known` defect have their default and are not reported again.
    """
    defective = {defect.path.partition("[")[0] for defect in known}
    return [
        Defect(label(path), text)
        for path, others, text in _contradictions(settings.kube, label)
        if defective.isdisjoint(map(label, (path, *others)))
    ]


def _contradictions(
    kube: KubeProxyConfiguration, label: Callable[[str], str]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield the path to report, the other paths involved, and the reason."""
    for name in sorted({traits.section for traits in TRAITS}):
        section: Iptables | Ipvs | Nftables = getattr(kube, name)
        if section.min_sync_period > section.sync_period:
            least, most = format_duration(section.min_sync_period), format_duration(section.sync_period)
            other = f"{name}.syncPeriod"
            yield f"{name}.minSyncPeriod", (other,), f'"{least}" is longer than {label(other)}, "{most}"'
    if PRIMARY in kube.node_port_addresses and len(kube.node_port_addresses) > 1:
        yield "nodePortAddresses", (), f'"{PRIMARY}" cannot be combined with CIDRs'
    for mode, field, value in (
        ("BridgeInterface", "bridgeInterface", kube.detect_local.bridge_interface),
        ("InterfaceNamePrefix", "interfaceNamePrefix", kube.detect_local.interface_name_prefix),
    ):
        if kube.detect_local_mode == mode and not is_interface(value):
            needed = f"{label('detectLocalMode')} {mode} needs one"
            yield f"detectLocal.{field}", (), f"{show(value)} is not an interface name, and {needed}"


def _without_obsolete(plain: dict[str, object]) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return the document without obsolete fields, and the paths of those that are set."""
    found = []
    for path in sorted(OBSOLETE):
        section, _, name = path.rpartition(".")
        holder = plain.get(section) if section else plain
        if isinstance(holder, dict) and name in holder:
            rest = {key: value for key, value in holder.items() if key != name}
            plain = plain | {section: rest} if section else rest
            found += [path] if holder[name] is not None else []
    return plain, tuple(found)


def _with_addresses(plain: dict[str, object]) -> dict[str, object]:
    """Fill in the addresses of the servers where `bindAddress` is an IPv6 one (v1alpha1/defaults.go)."""
    try:
        six = ipaddress.ip_address(str(plain.get("bindAddress"))).version == 6
    except ValueError:
        six = False
    if six:
        for name, value in (("healthzBindAddress", "[::]:10256"), ("metricsBindAddress", "[::1]:10249")):
            plain[name] = plain.get(name) or value
    return plain
