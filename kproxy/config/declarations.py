"""All declared settings with their paths, from which flags, help, reload and docs are derived."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from kproxy.config.codec import fields, split_annotation
from kproxy.config.durations import short_duration
from kproxy.config.process_flags import ProcessFlags
from kproxy.config.schema import KproxyConfiguration, KubeProxyConfiguration
from kproxy.config.settings import Group, Section, Setting
from kproxy.config.values import Reader

_GROUPS = {
    "conntrack": Group.CONNTRACK,
    "ebpf": Group.EBPF,
    "iptables": Group.IPTABLES,
    "ipvs": Group.IPVS,
    "limits": Group.LIMITS,
    "logging": Group.LOGGING,
    "networkPolicy": Group.NETWORK_POLICY,
    "nftables": Group.NFTABLES,
}


class Declaration(msgspec.Struct, frozen=True):
    """One field: its path such as `ipvs.scheduler`, its annotation, its default, and its `Setting`."""

    path: str
    annotation: Any
    default: Any
    setting: Setting

    @property
    def group(self) -> Group:
        """The heading of `--help`."""
        return self.setting.group or _GROUPS.get(self.path.partition(".")[0], Group.COMMON)

    @property
    def default_text(self) -> str:
        """The default as `--help` and the docs print it: `30s`, `true`, `14`; empty for nothing at all."""
        reader: Reader | None = self.first(Reader)
        if reader is not None and reader.metavar == "DURATION":
            return short_duration(self.default)
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return "" if self.default in ("", (), {}) else str(self.default)

    def first(self, kind: type[Any]) -> Any:
        """The first part of the annotation of this kind, or None."""
        return next((each for each in split_annotation(self.annotation)[1] if isinstance(each, kind)), None)


@functools.cache
def declarations(kind: type[Section]) -> tuple[Declaration, ...]:
    """The settings of a document or of the process. Raises TypeError for a field that declares none."""
    return tuple(_walk(kind(), ""))


def every_declaration() -> tuple[Declaration, ...]:
    """The settings of the process, of kube-proxy's document and of kproxy's own."""
    kinds: tuple[type[Section], ...] = (ProcessFlags, KubeProxyConfiguration, KproxyConfiguration)
    return tuple(each for kind in kinds for each in declarations(kind))


def by_flag(kind: type[Section]) -> Mapping[str, tuple[Declaration, ...]]:
    """The settings that each flag sets; the first one describes the flag."""
    found: dict[str, tuple[Declaration, ...]] = {}
    for each in declarations(kind):
        if flag := each.setting.flag:
            found[flag] = (*found.get(flag, ()), each)
    return found


def replaced_flags() -> Mapping[str, str]:
    """Deprecated flags of the process and the flags that replace them."""
    settings = [each.setting for each in declarations(ProcessFlags)]
    return {each.flag: each.replaced_by for each in settings if each.replaced_by}


def live_paths(kind: type[Section]) -> frozenset[str]:
    """Paths that take effect without a restart."""
    return frozenset(each.path for each in declarations(kind) if each.setting.live)


def ignored_paths(kind: type[Section]) -> frozenset[str]:
    """Paths that are accepted and have no effect."""
    return frozenset(each.path for each in declarations(kind) if not each.setting.effect)


def _walk(section: Section, prefix: str) -> Iterator[Declaration]:
    for field in fields(section):
        default = getattr(section, field.name)
        path = prefix + field.encode_name
        if isinstance(default, Section):
            yield from _walk(default, path + ".")
            continue
        extras = split_annotation(field.type)[1]
        setting = next((each for each in extras if isinstance(each, Setting)), None)
        if setting is None:
            raise TypeError(f"{path} declares no setting")
        yield Declaration(path, field.type, default, setting)
