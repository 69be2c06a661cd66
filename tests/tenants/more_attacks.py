"""Further attacks by objects alone: floods, limits of names and metadata, writes that change nothing."""

from tests.tenants.attacker import Attacker
from tests.tenants.attacks import Attack
from tests.tenants.objects import JSON, SPACE, endpoint, outside_ips, pod_ips, ports, service, slice_of

_BULK = 900_000
"""Bytes of metadata in one object: below the 1.5 MB that etcd stores (etcd's --max-request-bytes)."""


def _tiny(name: str, number: int, space: str = SPACE) -> tuple[JSON, JSON]:
    listed = ports(1)
    return (
        service(name, number, listed, space=space),
        slice_of(name, [endpoint(f"10.130.{number // 250 % 250}.{number % 250 + 1}")], listed, space=space),
    )


def flash(attacker: Attacker, *, services: int, turns: int) -> None:
    """Many services that come and go all at once."""
    for _ in range(turns):
        names = [f"flash-{n}" for n in range(services)]
        attacker.write_all(obj for n, name in enumerate(names) for obj in _tiny(name, 2000 + n))
        attacker.pause(0.2)
        for name in names:
            attacker.delete("Service", name)
            attacker.delete("EndpointSlice", f"{name}-a")


def many_slices(attacker: Attacker, *, slices: int, changes: int) -> None:
    """A service in as many slices as there are endpoints; some change."""
    listed = ports(1)
    ips = pod_ips(slices)
    attacker.write(service("sliced", attacker.number(), listed))
    attacker.write_all(slice_of("sliced", [endpoint(ip)], listed, name=str(n)) for n, ip in enumerate(ips))
    for n in range(changes):
        attacker.write(slice_of("sliced", [endpoint(ips[n], ready=False)], listed, name=str(n)))
        attacker.pause(0.02)


def same_endpoints(attacker: Attacker, *, slices: int, endpoints: int) -> None:
    """Slices that all list the same endpoints."""
    listed = ports(2)
    found = [endpoint(ip) for ip in pod_ips(endpoints)]
    attacker.write(service("same", attacker.number(), listed))
    attacker.write_all((slice_of("same", found, listed, name=str(n)) for n in range(slices)), at_once=5)


def names(attacker: Attacker, *, services: int) -> None:
    """Names of the greatest length everywhere, which differ in their last characters only."""
    space = SPACE + "x" * (63 - len(SPACE))
    for n in range(services):
        name = f"{'n' * 57}-{n:05}"
        listed = [
            {"name": f"{'p' * 12}-{k:02}", "port": 1 + k, "protocol": "TCP", "targetPort": 1 + k}
            for k in range(5)
        ]
        labels = {f"{'d' * 63}.example/{'l' * 60}-{k:02}": "v" * 63 for k in range(20)}
        made = slice_of(name, [endpoint(ip, pod="q" * 253) for ip in pod_ips(3)], listed, space=space)
        made["metadata"]["name"] = f"{'s' * 247}-{n:05}"
        attacker.write(service(name, 8000 + n, listed, space=space, labels=labels), made)


def headless(attacker: Attacker, *, services: int) -> None:
    """Services without addresses: headless, ExternalName."""

    def made(n: int) -> JSON:
        obj = service(f"no-ip-{n}", n, ports(1))
        spec = obj["spec"]
        if n % 2:
            for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                del spec[field]
            return obj | {"spec": spec | {"type": "ExternalName", "externalName": f"{n}.example.com"}}
        return obj | {"spec": spec | {"clusterIP": "None", "clusterIPs": ["None"]}}

    attacker.write_all(made(n) for n in range(services))
    attacker.write_all(
        slice_of(f"no-ip-{n}", [endpoint(ip) for ip in pod_ips(5)], ports(1)) for n in range(services)
    )


def events(attacker: Attacker, *, services: int, turns: int) -> None:
    """Problems that come and go: each can cause a log line and an Event."""
    for turn in range(turns):
        bad = ["127.0.0.1", "169.254.169.254", "224.0.0.1", "not an address"] if turn % 2 == 0 else []
        shared = outside_ips(2) if turn % 2 == 0 else []
        attacker.write_all(
            service(
                f"bad-{n}", 3000 + n, ports(2), externalIPs=[*bad, *shared, f"0.0.0.{n % 250}"],
                annotations={"kproxy.io/weights": f"{{bad {turn} {n}"},
            )
            for n in range(services)
        )  # fmt: skip
        attacker.pause(0.1)


def metadata_churn(attacker: Attacker, *, writes: int, per_second: int) -> None:
    """Labels and annotations that mean nothing change all the time."""
    base, endpoints = _tiny("churn", attacker.number())
    attacker.write(base, endpoints)
    for n in range(writes):
        for obj in (base, endpoints):
            obj["metadata"]["annotations"] = {"example.com/n": str(n)}
            obj["metadata"]["labels"] = {**obj["metadata"].get("labels", {}), "n": str(n)}
        attacker.write(base, endpoints)
        attacker.pause(1 / per_second)


def bulk(attacker: Attacker, *, objects: int, writes: int) -> None:
    """Megabytes of managedFields and of annotations that kproxy does not read."""
    fields = [
        {"manager": f"m{n}", "operation": "Apply", "fieldsV1": {f"f:{'k' * 900}{n}": {}}}
        for n in range(_BULK // 1000)
    ]
    for n in range(writes):
        for k in range(objects):
            base, endpoints = _tiny(f"bulk-{k}", 4000 + k)
            base["metadata"]["managedFields"] = fields
            base["metadata"]["annotations"] = {"example.com/n": str(n), "example.com/x": "x" * 250_000}
            endpoints["metadata"]["managedFields"] = fields
            attacker.write(base, endpoints)
            attacker.pause(0.02)


def storm(attacker: Attacker, *, writes: int, per_second: int) -> None:
    """One service gets another endpoint at each of many writes."""
    listed = ports(3)
    attacker.write(service("storm", attacker.number(), listed))
    for n in range(writes):
        attacker.write(slice_of("storm", [endpoint(f"10.131.0.{n % 200 + 1}")], listed))
        attacker.pause(1 / per_second)


def namespaces(attacker: Attacker, *, spaces: int) -> None:
    """A service in each of many namespaces."""
    attacker.write_all(obj for n in range(spaces) for obj in _tiny("one", 10_000 + n, space=f"{SPACE}-{n}"))


def health_ports(attacker: Attacker, *, services: int) -> None:
    """Load balancers whose health-check ports need a socket each."""

    def made(n: int) -> JSON:
        obj = service(
            f"health-{n}", 6000 + n, ports(1), type="LoadBalancer", externalTrafficPolicy="Local",
            allocateLoadBalancerNodePorts=False, healthCheckNodePort=32768 + n % 20000,
        )  # fmt: skip
        return obj | {"status": {"loadBalancer": {"ingress": [{"ip": f"198.19.{n // 250}.{n % 250 + 1}"}]}}}

    attacker.write_all(made(n) for n in range(services))


def frontends(attacker: Attacker, *, ports_: int, outside: int, changes: int) -> None:
    """Many frontends; their one endpoint changes."""
    listed = ports(ports_)
    attacker.write(service("frontends", attacker.number(), listed, externalIPs=outside_ips(outside)))
    for n in range(changes):
        attacker.write(slice_of("frontends", [endpoint(f"10.132.0.{n + 1}")], listed))
        attacker.pause(0.3)


def settings(attacker: Attacker, *, services: int, turns: int) -> None:
    """Policies, affinity and source ranges of services change, so that all their rules do."""
    for turn in range(turns):
        odd = turn % 2
        for n in range(services):
            listed = ports(5)
            made = service(
                f"turns-{n}", 7000 + n, listed, externalIPs=outside_ips(4, first=5000 + 4 * n),
                sessionAffinity="ClientIP" if odd else "None",
                externalTrafficPolicy="Local" if odd else "Cluster",
                internalTrafficPolicy="Cluster" if odd else "Local",
            )  # fmt: skip
            attacker.write(made, slice_of(f"turns-{n}", [endpoint(ip) for ip in pod_ips(20, 20 * n)], listed))
        attacker.pause(0.1)


MORE = (
    Attack("many services come and go at once", flash, {"services": 80, "turns": 1},
           {"services": 3000, "turns": 3}),
    Attack("a slice for each endpoint", many_slices, {"slices": 60, "changes": 5},
           {"slices": 1000, "changes": 100}),
    Attack("slices that list the same endpoints", same_endpoints, {"slices": 10, "endpoints": 20},
           {"slices": 300, "endpoints": 100}),
    Attack("names of the greatest length", names, {"services": 10}, {"services": 500}),
    Attack("headless and ExternalName services", headless, {"services": 60}, {"services": 5000}),
    Attack("problems that cause log lines and Events", events, {"services": 10, "turns": 3},
           {"services": 500, "turns": 20}),
    Attack("metadata changes that mean nothing", metadata_churn, {"writes": 40, "per_second": 400},
           {"writes": 2000, "per_second": 200}),
    Attack("bulk of managedFields and annotations", bulk, {"objects": 1, "writes": 2},
           {"objects": 20, "writes": 5}),
    Attack("an update storm of one object", storm, {"writes": 60, "per_second": 400},
           {"writes": 2000, "per_second": 200}),
    Attack("a service in each of many namespaces", namespaces, {"spaces": 60}, {"spaces": 10000}),
    Attack("health-check node ports", health_ports, {"services": 20}, {"services": 1000}),
    Attack("many frontends, their endpoint changes", frontends,
           {"ports_": 10, "outside": 10, "changes": 2}, {"ports_": 100, "outside": 300, "changes": 5}),
    Attack("settings of services change", settings, {"services": 5, "turns": 2},
           {"services": 200, "turns": 10}),
)  # fmt: skip
"""Attacks beyond the issue's table."""
