"""Changes of Services and EndpointSlices."""

from tests.peer.cases.words import EVERYWHERE, LOCAL, balancer, case, delete, unready, write
from tests.peer.objects import port, served, service, slices, vips

CASES = (
    case(
        "endpoints come and go",
        write(service("web"), slices("web", "local-0")),
        write(slices("web", "local-1", "remote-0")),
        write(slices("web")),
        write(slices("web", "remote-0")),
    ),
    case(
        "endpoints become ready and unready",
        write(balancer(), slices("web", unready("local-0"))),
        write(slices("web", "local-0")),
        write(slices("web", unready("local-0"))),
    ),
    case(
        "slices are deleted",
        write(service("web"), EVERYWHERE, slices("web", "remote-1", suffix="b")),
        delete("EndpointSlice", "web-a-4", "web-a-6"),
        delete("EndpointSlice", "web-b-4", "web-b-6"),
    ),
    case(
        "a service is deleted and comes back",
        write(balancer(externalIPs=vips(11)), EVERYWHERE),
        delete("Service", "web"),
        write(balancer(externalIPs=vips(12))),
    ),
    case(
        "type changes",
        write(service("web"), EVERYWHERE),
        write(service("web", type="NodePort")),
        write(balancer()),
        write(service("web")),
    ),
    case(
        "becomes and ceases to be an external name",
        write(service("web"), EVERYWHERE),
        write(service("web", type="ExternalName", externalName="example.org")),
        write(service("web")),
    ),
    case(
        "node port changes",
        write(service("web", port(80, nodePort=30081), type="NodePort"), EVERYWHERE),
        write(service("web", port(80, nodePort=30082), type="NodePort")),
    ),
    case("port changes", write(service("web", port(80)), EVERYWHERE), write(service("web", port(90)))),
    case(
        "port's name changes",
        write(service("web", port(80, "a")), slices("web", "local-0", ports=[served(name="a")])),
        write(service("web", port(80, "b"))),
        write(slices("web", "local-0", ports=[served(name="b")])),
    ),
    case(
        "protocol changes",
        write(service("web", port(53, "", "UDP")), slices("web", "local-0", ports=[served(protocol="UDP")])),
        write(service("web", port(53)), slices("web", "local-0")),
    ),
    case(
        "policy changes",
        write(balancer(), slices("web", "remote-0")),
        write(balancer(**LOCAL)),
        write(slices("web", "local-0", "remote-0")),
        write(balancer(externalTrafficPolicy="Cluster")),
    ),
    case(
        "another proxy takes over, and gives back",
        write(balancer(), EVERYWHERE),
        write(balancer(labels={"service.kubernetes.io/service-proxy-name": "other"})),
        write(balancer()),
    ),
    case(
        "slices move to another service",
        write(service("left"), slices("left", "local-0"), service("two")),
        write(
            [
                obj | {"metadata": obj["metadata"] | {"labels": {"kubernetes.io/service-name": "two"}}}
                for obj in slices("left", "local-0")
            ]
        ),
    ),
    case(
        "external IPs move to another service",
        write(service("web", externalIPs=vips(11)), EVERYWHERE, service("two"), slices("two", "remote-1")),
        write(service("web")),
        write(service("two", externalIPs=vips(11))),
    ),
    case(
        "cluster IP moves to another service",
        write(
            service(
                "web",
                clusterIP="10.96.0.88",
                clusterIPs=["10.96.0.88"],
                ipFamilies=["IPv4"],
                ipFamilyPolicy="SingleStack",
            ),
            EVERYWHERE,
        ),
        delete("Service", "web"),
        write(
            service(
                "two",
                clusterIP="10.96.0.88",
                clusterIPs=["10.96.0.88"],
                ipFamilies=["IPv4"],
                ipFamilyPolicy="SingleStack",
            ),
            slices("two", "remote-1"),
        ),
    ),
    case(
        "balancer's address comes later and changes",
        write(service("web", type="LoadBalancer"), EVERYWHERE),
        write(balancer()),
        write(balancer(number=12)),
    ),
    case(
        "family is added and removed",
        write(service("web", ipFamilyPolicy="SingleStack", ipFamilies=["IPv4"]), EVERYWHERE),
        write(service("web")),
        write(service("web", ipFamilyPolicy="SingleStack", ipFamilies=["IPv4"], clusterIPs=None)),
    ),
)
