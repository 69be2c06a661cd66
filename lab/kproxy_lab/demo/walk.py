"""The zero-trust walk: who may talk to whom in the shop, before and after its NetworkPolicies.

What is expected is written down here by hand, step by step, and not computed: which policies a refused
connection must be refused by is what a reader of manifests/examples/zero-trust would say.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kproxy_lab.demo.examples import Examples, Json, UnusableExamplesError, key, load, shown
from kproxy_lab.lab.servers import Protocol, host_port
from kproxy_lab.lab.topology import Pod

FOLDER: Final = "zero-trust"
INTERNET: Final = "the Internet"
INTERNET_PORT: Final = 443
_PODS: Final = frozenset(
    {"ingress/controller", "shop/frontend", "shop/backend", "shop/database", "default/stranger"}
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Who must refuse: the direction at the isolated pod, and the policies that isolate it."""

    direction: str
    pod: str
    policies: frozenset[str]


@dataclass(frozen=True, slots=True)
class Step:
    """One connection: from a pod (`namespace/name`), to an address that stands for `target`.

    `refused` None: the policies allow it. Without policies everything is allowed.
    """

    source: str
    target: str
    ip: str
    port: int
    protocol: Protocol = "TCP"
    refused: Refusal | None = None

    @property
    def address(self) -> str:
        """`ip:port/protocol`."""
        return f"{host_port(self.ip, self.port)}/{self.protocol}"

    @property
    def title(self) -> str:
        """The connection in words."""
        return f"{self.source} to {self.target}, {self.address}"


@dataclass(frozen=True, slots=True)
class Walked:
    """The outcomes of a step without and with policies, kproxy's reasons, and what is wrong with all that."""

    step: Step
    before: Counter[str]
    now: Counter[str]
    reasons: tuple[str, ...]
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Walk:
    """The objects of the walk, its steps in order, and the lab's pod behind each Pod object."""

    objects: Examples
    policies: tuple[Json, ...]
    steps: tuple[Step, ...]
    pods: Mapping[str, Pod]


def load_walk(examples: Path, pods: Sequence[Pod], internet: str) -> Walk | None:
    """The walk beside these examples, or None if there is none. `internet`: an address outside the cluster.

    Raises UnusableExamplesError.
    """
    folder = examples / FOLDER
    if not folder.is_dir():
        return None
    found = load(folder)
    by_ip = {pod.ip4: pod for pod in pods}
    named = {}
    for each in found.objects:
        if each["kind"] == "Pod":
            ip = each["status"]["podIP"]
            if ip not in by_ip:
                raise UnusableExamplesError(f"{key(each)}: {ip} is no pod of the lab")
            named[key(each)] = by_ip[ip]
    if missing := sorted(_PODS - named.keys()):
        raise UnusableExamplesError(f"{shown(folder)} has no pod {', '.join(missing)}")
    policies = tuple(each for each in found.objects if each["kind"] == "NetworkPolicy")
    others = tuple(each for each in found.objects if each["kind"] != "NetworkPolicy")
    return Walk(Examples(folder, others), policies, _steps(named, internet), named)


def _steps(pods: Mapping[str, Pod], internet: str) -> tuple[Step, ...]:
    every, dns = "shop/default-deny", "shop/allow-dns"
    at_database = Refusal("ingress", "shop/database", frozenset({every, "shop/database"}))
    of_frontend = Refusal("egress", "shop/frontend", frozenset({every, dns, "shop/frontend"}))
    of_database = Refusal("egress", "shop/database", frozenset({every, dns}))
    return (
        Step("ingress/controller", "shop/frontend", pods["shop/frontend"].ip4, 3000),
        Step("shop/frontend", "shop/backend", "10.96.1.14", 80),
        Step("shop/backend", "shop/database", "10.96.1.15", 5432),
        Step("shop/backend", "kube-system/kube-dns", "10.96.0.10", 53, "UDP"),
        Step("default/stranger", "shop/database", "10.96.1.15", 5432, refused=at_database),
        Step("shop/frontend", "shop/database", "10.96.1.15", 5432, refused=of_frontend),
        Step("shop/database", INTERNET, internet, INTERNET_PORT, refused=of_database),
    )


def compare(step: Step, counts: Counter[str], *, enforced: bool) -> tuple[str, ...]:
    """What is wrong with the outcomes of a step: names of pods that answered, or of errors."""
    failures = {name for name in counts if name in ("NoAnswer", "Refused", "Unreachable", "Broken")}
    if enforced and step.refused is not None:
        answered = sorted(counts.keys() - {"NoAnswer"})
        return (f"was to get no answer, but got {', '.join(answered)}",) if answered else ()
    return (f"was to be answered, but got {', '.join(sorted(failures))}",) if failures else ()


def is_of(refused: Json, step: Step, walk: Walk) -> bool:
    """Whether a refused connection that kproxy names is the one of a step, by its addresses."""
    ends = (walk.pods[step.source].ip4, walk.pods[step.target].ip4 if step.target in walk.pods else step.ip)
    found: tuple[str, str] = (refused["source"]["ip"], refused["wanted"]["ip"])
    return found == ends


def named_wrong(step: Step, found: Sequence[Json]) -> tuple[str, ...]:
    """What is wrong with how kproxy names the refusal of a step: both pods, the policies and the reason."""
    wanted = step.refused
    if wanted is None:
        return ()
    if not found:
        return ("kproxy does not name it",)
    pods = (step.source, None if step.target == INTERNET else step.target)
    wrong = []
    for each in found:
        if (named := (each["source"].get("pod"), each["wanted"].get("pod"))) != pods:
            wrong.append(f"kproxy names the pods {named[0]} and {named[1]}")
        policies = sorted(each["policies"])
        if each["direction"] != wanted.direction or set(policies) != wanted.policies:
            wrong.append(f"kproxy names {each['direction']} by {', '.join(policies) or 'no policy'}")
        if not each["nearest"] or not each["detail"]:
            wrong.append("kproxy gives no reason")
    return tuple(wrong)
