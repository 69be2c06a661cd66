"""Apply flags to the configuration, and decide which flags count besides a file.

The rule is kube-proxy's (cmd/kube-proxy/app/options.go, Complete): with --config the file is the whole
configuration, and flags that are also fields of it do not count, except --hostname-override and the logging
flags. Flags that are no field of KubeProxyConfiguration always count: --master and kproxy's own.
"""

import typing
from collections.abc import Mapping

import msgspec

from kproxy.config.codec import Defect, assign, split_annotation
from kproxy.config.declarations import Declaration, by_flag, replaced_flags
from kproxy.config.documents import Settings, contradictions
from kproxy.config.process_flags import ProcessFlags
from kproxy.config.schema import KproxyConfiguration, KubeProxyConfiguration, VerbosityOfFiles
from kproxy.config.values import host_port

_KUBE = by_flag(KubeProxyConfiguration)
_OWN = by_flag(KproxyConfiguration)
_PROCESS = by_flag(ProcessFlags)

FLAGS: Mapping[str, tuple[str, ...]] = {
    flag: tuple(each.path for each in fields) for flag, fields in _KUBE.items()
}
"""kube-proxy's flags -> paths in KubeProxyConfiguration."""

OWN_FLAGS: Mapping[str, str] = {flag: first.path for flag, (first, *_) in _OWN.items()}
"""kproxy's flags -> paths in KproxyConfiguration."""

MODE_FLAG = "proxy-mode"
MODE_PATH = "mode"
"""The flag whose value belongs to one document or the other, and its path in kproxy's own."""

PORT_FLAGS = replaced_flags()
"""Deprecated flags and the ones that replace them: 0 turns the server off, any other value is the port of an
address without one (addressFromDeprecatedFlags)."""

PROCESS_FLAGS = frozenset(_PROCESS.keys() - PORT_FLAGS.keys())
"""Flags that concern this process only; neither document has a field for them."""


def counts_with_file(flag: str) -> bool:
    """Whether a flag counts although --config is set."""
    if flag in PORT_FLAGS:
        return False
    return flag not in _KUBE or _KUBE[flag][0].setting.with_file


def apply_flags(settings: Settings, flags: Mapping[str, object]) -> tuple[Settings, list[Defect]]:
    """Put the values of flags (text, numbers, booleans) into the documents. Defects are named by flag."""
    kube, own = settings.kube, settings.own
    defects: list[Defect] = []
    for flag, value in _without_ports(flags, defects).items():
        declared = (_KUBE.get(flag) or _OWN.get(flag) or (None,))[0]
        if declared is None or (declared.setting.empty_is_unset and value == ""):
            continue
        try:
            plain = _plain(declared, value)
        except ValueError as error:
            defects.append(Defect(f"--{flag}", str(error)))
            continue
        if flag == MODE_FLAG:
            named, found = assign(own, MODE_PATH, plain, f"--{flag}")
            defects += found
            if not found:
                chosen = Settings(kube, own).with_mode(named.mode)
                kube, own = chosen.kube, chosen.own
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


def read_process(flags: Mapping[str, object]) -> tuple[ProcessFlags, list[Defect]]:
    """Read the flags that concern this process only. Defects are named by flag."""
    process = ProcessFlags()
    defects: list[Defect] = []
    for flag, value in flags.items():
        if flag in PROCESS_FLAGS:
            process, found = assign(process, _PROCESS[flag][0].path, value, f"--{flag}")
            defects += found
    if "timeout" in flags and not defects and not process.once:
        defects.append(Defect("--timeout", "is for --once"))
    if "at" in flags and not defects and not process.replay:
        defects.append(Defect("--at", "is for --replay"))
    return process, defects


def _without_ports(flags: Mapping[str, object], defects: list[Defect]) -> dict[str, object]:
    """Replace the deprecated port flags by the address flags."""
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


def _plain(declared: Declaration, value: object) -> object:
    """Convert a flag's text to the form of the file."""
    bare, _ = split_annotation(declared.annotation)
    if not isinstance(value, str) or typing.get_origin(bare) is None:
        return value
    if typing.get_origin(bare) is not tuple:
        return {name: _boolean(name, text) for name, text in _pairs(value)}
    if typing.get_args(bare)[0] is VerbosityOfFiles:
        return [{"filePattern": name, "verbosity": _level(name, text)} for name, text in _pairs(value)]
    return [part.strip() for part in value.split(",") if part.strip()]


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
