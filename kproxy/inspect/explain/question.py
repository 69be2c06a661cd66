"""Read the arguments of `kproxy explain`: SRC, PROTO and DST, as an operator writes them.

Reading is separate from resolving (resolve.py), because the command reads them before it knows any object.
"""

import msgspec

from kproxy.addresses import parse_ip
from kproxy.plan.model import Protocol
from kproxy.state.wire import PORT_MAX


class QuestionError(ValueError):
    """The question cannot be read, or names what is not known; the message says how to ask instead."""


class Question(msgspec.Struct, frozen=True):
    """A question as it was asked. `source` and `destination` are read again where objects are known."""

    source: str
    protocol: Protocol
    destination: str


class PodName(msgspec.Struct, frozen=True):
    """A source `pod/NS/NAME`."""

    namespace: str
    name: str


class ServicePort(msgspec.Struct, frozen=True):
    """A destination `NS/SVC[:PORT or NAME]`; `port` is "" if it is left out."""

    key: str
    port: str = ""


class AddressPort(msgspec.Struct, frozen=True):
    """A destination `IP` or `IP:PORT`; `port` is None if it is left out."""

    ip: str
    port: int | None = None


NODE, OUTSIDE = "node", "outside"


def read_question(source: str, protocol: str, destination: str) -> Question:
    """Read the three arguments. Raises QuestionError."""
    try:
        known = Protocol(protocol.upper())
    except ValueError:
        raise QuestionError(f"PROTO {protocol!r}: tcp, udp or sctp") from None
    read_source(source)
    read_destination(destination)
    return Question(source, known, destination)


def read_source(text: str) -> PodName | str:
    """A pod's name, "node", "outside", or a canonical IP. Raises QuestionError."""
    if text in {NODE, OUTSIDE}:
        return text
    if text.startswith("pod/"):
        match text.split("/"):
            case [_, namespace, name] if namespace and name:
                return PodName(namespace, name)
        raise QuestionError(f"SRC {text!r}: a pod is pod/NAMESPACE/NAME")
    try:
        return parse_ip(text.removeprefix("[").removesuffix("]"))[1]
    except ValueError:
        raise QuestionError(f"SRC {text!r}: pod/NAMESPACE/NAME, node, outside, or an IP address") from None


def read_destination(text: str) -> ServicePort | AddressPort:
    """A Service's port, or an address. Raises QuestionError."""
    if "/" in text:
        key, _, port = text.partition(":")
        match key.split("/"):
            case [namespace, name] if namespace and name:
                return ServicePort(key, port)
        raise QuestionError(f"DST {text!r}: a Service is NAMESPACE/NAME, with :PORT or :NAME")
    host, port = _host_and_port(text)
    try:
        ip = parse_ip(host)[1]
    except ValueError:
        raise QuestionError(
            f"DST {text!r}: NAMESPACE/SERVICE with :PORT or :NAME, an IP address, or IP:PORT ([IP]:PORT)"
        ) from None
    if not port:
        return AddressPort(ip)
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= PORT_MAX):
        raise QuestionError(f"DST {text!r}: the port is not a number from 1 to {PORT_MAX}")
    return AddressPort(ip, int(port))


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":")
    if text.count(":") > 1:
        return text, ""
    host, _, port = text.partition(":")
    return host, port
