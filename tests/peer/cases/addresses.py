"""Unusual addresses, and unusual slices."""

from tests.peer.cases.words import (
    EVERYWHERE,
    LOCAL,
    NODE_IPS,
    balancer,
    case,
    delete,
    leaving,
    raw,
    unready,
    write,
)
from tests.peer.objects import OTHER_TARGET, TARGET, port, served, service, slices, vips

CASES = (
    case(
        "ipMode Proxy",
        write(
            service("web", type="LoadBalancer", ingress=[{"ip": ip, "ipMode": "Proxy"} for ip in vips(10)]),
            EVERYWHERE,
        ),
        since=(1, 29),
    ),
    case(
        "ipMode VIP",
        write(
            service("web", type="LoadBalancer", ingress=[{"ip": ip, "ipMode": "VIP"} for ip in vips(10)]),
            EVERYWHERE,
        ),
    ),
    case(
        "balancer with a host name",
        write(service("web", type="LoadBalancer", ingress=[{"hostname": "lb.example.org"}]), EVERYWHERE),
    ),
    case(
        "balancer with two addresses",
        write(
            service("web", type="LoadBalancer", ingress=[{"ip": ip} for ip in (*vips(10), *vips(12))]),
            EVERYWHERE,
        ),
    ),
    case("balancer's address is an external IP, too", write(balancer(externalIPs=vips(10)), EVERYWHERE)),
    case("external IPs that are the node's", write(service("web", externalIPs=NODE_IPS), EVERYWHERE)),
    case("external IPs that are the node's, no endpoints", write(service("web", externalIPs=NODE_IPS))),
    case(
        "balancer's address is the node's",
        write(service("web", type="LoadBalancer", ingress=[{"ip": ip} for ip in NODE_IPS]), EVERYWHERE),
    ),
    case(
        "balancer's address is the node's, Local",
        write(
            service("web", type="LoadBalancer", ingress=[{"ip": ip} for ip in NODE_IPS], **LOCAL),
            slices("web", "remote-0"),
        ),
    ),
    case(
        "external IP that is a cluster IP of another",
        write(
            service(
                "one",
                clusterIP="10.96.0.77",
                clusterIPs=["10.96.0.77"],
                ipFamilyPolicy="SingleStack",
                ipFamilies=["IPv4"],
            ),
            slices("one", "local-0"),
            service("web", port(81), externalIPs=["10.96.0.77"]),
            slices("web", "local-1"),
        ),
    ),
    case(
        "two claim one address and port",
        write(
            service("one", externalIPs=vips(11), created="2025-01-01T00:00:00Z"),
            slices("one", "local-0"),
            service("two", externalIPs=vips(11), created="2025-01-02T00:00:00Z"),
            slices("two", "local-1"),
        ),
    ),
    case(
        "two claim one address and port, one can answer",
        write(
            balancer(name="idle", externalIPs=vips(11), created="2025-01-01T00:00:00Z"),
            balancer(name="two", externalIPs=vips(11), created="2025-01-02T00:00:00Z"),
            slices("two", "local-1"),
        ),
        write(service("idle", externalIPs=vips(11), created="2025-01-01T00:00:00Z")),
        delete("Service", "two"),
    ),
    case(
        "two share one address",
        write(
            service("one", port(80), externalIPs=vips(11)),
            slices("one", "local-0"),
            service("two", port(81), externalIPs=vips(11)),
            slices("two", "local-1"),
        ),
    ),
    case(
        "a balancer's address stays after its type is gone",
        write(balancer(), EVERYWHERE),
        write(service("web", ingress=[{"ip": ip} for ip in vips(10)])),
    ),
    case(
        "external IPs that are none",
        raw(
            service(
                "web",
                clusterIP="10.96.0.70",
                clusterIPs=["10.96.0.70"],
                ipFamilies=["IPv4"],
                externalIPs=["not-an-ip", *vips(11), ""],
            ),
            EVERYWHERE,
        ),
        since=(1, 25),
    ),
    case(
        "an endpoint in two slices",
        write(service("web"), slices("web", "local-0", "remote-0"), slices("web", "local-0", suffix="b")),
    ),
    case(
        "an endpoint in two slices, not ready in one",
        write(
            service("web"),
            slices("web", unready("local-0"), "remote-0"),
            slices("web", "local-0", suffix="b"),
        ),
        until=(1, 21),
    ),
    case(
        "an endpoint in two slices, terminating in one",
        write(
            service("web"),
            slices("web", "local-0", "remote-0"),
            slices("web", leaving("local-0"), suffix="b"),
        ),
    ),
    case(
        "several slices",
        write(
            service("web"),
            slices("web", "local-0"),
            slices("web", "local-1", suffix="b"),
            slices("web", "remote-0", suffix="c"),
        ),
    ),
    case(
        "ports of their own in each slice",
        write(
            service("web", port(80, "a")),
            slices("web", "local-0", ports=[served(TARGET, "a")]),
            slices("web", "local-1", ports=[served(OTHER_TARGET, "a")], suffix="b"),
        ),
    ),
    case(
        "one pod on two ports",
        write(
            service("web", port(80, "a")),
            slices("web", "local-0", ports=[served(TARGET, "a")]),
            slices("web", "local-0", ports=[served(OTHER_TARGET, "a")], suffix="b"),
        ),
        since=(1, 25),
    ),
    case(
        "ports with names",
        write(
            service("web", port(80, "a"), port(81, "b")),
            slices("web", "local-0", "local-1", ports=[served(TARGET, "a"), served(OTHER_TARGET, "b")]),
        ),
    ),
    case(
        "a slice's port has another name",
        write(service("web", port(80, "a")), slices("web", "local-0", ports=[served(TARGET, "b")])),
    ),
    case(
        "a slice's port has no name, the service's has",
        write(service("web", port(80, "a")), slices("web", "local-0")),
    ),
    case(
        "a slice's port has another protocol",
        write(service("web", port(80)), slices("web", "local-0", ports=[served(protocol="UDP")])),
    ),
    case(
        "a slice's port without a number",
        raw(slices("web", "local-0", ports=[served(None)])),
        write(service("web")),
    ),
    case(
        "a slice's port without a name",
        raw(slices("web", "local-0", ports=[served(name=None)])),
        write(service("web")),
    ),
    case("a slice without ports", raw(slices("web", "local-0", ports=None)), write(service("web"))),
    case("a slice with no ports", raw(slices("web", "local-0", ports=[])), write(service("web"))),
    case(
        "a slice of names",
        raw(
            [
                obj | {"addressType": "FQDN", "endpoints": [{"addresses": ["pod.example.org"]}]}
                for obj in slices("web", "local-0")
            ],
            slices("web", "local-1", suffix="b"),
        ),
        write(service("web")),
    ),
    case(
        "an endpoint with two addresses",
        raw(
            [
                obj | {"endpoints": [{"addresses": ["10.244.1.10", "10.244.1.11"]}]}
                for obj in slices("web", "local-0", families=[4])
            ]
        ),
        write(service("web")),
    ),
    case(
        "an endpoint without addresses",
        raw(
            [obj | {"endpoints": [{"addresses": []}, *obj["endpoints"]]} for obj in slices("web", "local-0")]
        ),
        write(service("web")),
    ),
    case(
        "a slice that names no service",
        raw(
            [
                obj | {"metadata": {"name": obj["metadata"]["name"], "namespace": "default"}}
                for obj in slices("web", "local-0")
            ]
        ),
        write(service("web")),
    ),
)
