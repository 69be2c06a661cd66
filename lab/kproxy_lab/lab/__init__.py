"""A network lab in namespaces: a node under test, pods, another node, clients.

    with Lab(LabSpec(local_pods=2, remote_pods=1)) as lab:
        lab.serve(lab.pods[0], "TCP", 8080)
        lab.node.run(["iptables-restore", "--noflush"], stdin=rules)
        answer = lab.ask(lab.client, "10.96.0.10", 80)
        answer.pod, answer.source_ip_seen

Needs root and a kernel with network namespaces, veth and bridges; `Lab.missing()` lists what is missing.
The lab adds no packet filter or NAT rule itself, except for the masquerading of a plain bridge: only the
proxy under test does.
"""

from kproxy_lab.lab.clients import Answer, AskError, Broken, NoAnswer, Refused, Unreachable
from kproxy_lab.lab.lab import HeldConnection, Lab, NotSupportedError
from kproxy_lab.lab.namespaces import Namespace
from kproxy_lab.lab.sctp import ArrivedAt
from kproxy_lab.lab.servers import Protocol, Server
from kproxy_lab.lab.topology import LabSpec, Pod

__all__ = [
    "Answer",
    "ArrivedAt",
    "AskError",
    "Broken",
    "HeldConnection",
    "Lab",
    "LabSpec",
    "Namespace",
    "NoAnswer",
    "NotSupportedError",
    "Pod",
    "Protocol",
    "Refused",
    "Server",
    "Unreachable",
]
