"""Types and addresses of services, with and without endpoints."""

from tests.peer.cases.words import EVERYWHERE, LOCAL, balancer, case, unready, write
from tests.peer.objects import OTHER_TARGET, Ep, port, served, service, slices, vips

CASES = (
    case("cluster IP", write(service("web"), EVERYWHERE)),
    case(
        "cluster IP, UDP",
        write(
            service("web", port(53, "", "UDP")),
            slices("web", "local-0", "remote-0", ports=[served(protocol="UDP")]),
        ),
    ),
    case("one endpoint, which asks itself", write(service("web"), slices("web", "local-0"))),
    case("endpoints in the nodes' own networks", write(service("web"), slices("web", "local", "remote"))),
    case("only this node itself, all kinds", write(balancer(externalIPs=vips(11)), slices("web", "local"))),
    case("node port", write(service("web", type="NodePort"), EVERYWHERE)),
    case(
        "node port, both protocols under one number",
        write(
            service(
                "web",
                port(53, "a", "TCP", nodePort=30053),
                port(53, "b", "UDP", nodePort=30053),
                type="NodePort",
            ),
            slices("web", "local-0", "remote-0", ports=[served(name="a"), served(OTHER_TARGET, "b", "UDP")]),
        ),
    ),
    case("load balancer", write(balancer(), EVERYWHERE)),
    case(
        "load balancer without node ports", write(balancer(allocateLoadBalancerNodePorts=False), EVERYWHERE)
    ),
    case("external IPs", write(service("web", externalIPs=vips(11)), EVERYWHERE)),
    case("everything at once", write(balancer(externalIPs=vips(11)), EVERYWHERE)),
    case("headless", write(service("web", clusterIP="None"), EVERYWHERE)),
    case(
        "headless with external IPs",
        write(service("web", clusterIP="None", externalIPs=vips(11)), EVERYWHERE),
    ),
    case("external name", write(service("web", type="ExternalName", externalName="example.org"), EVERYWHERE)),
    case(
        "external name with external IPs",
        write(
            service("web", type="ExternalName", externalName="example.org", externalIPs=vips(11)), EVERYWHERE
        ),
    ),
    case(
        "IPv4 alone",
        write(
            service("web", ipFamilyPolicy="SingleStack", ipFamilies=["IPv4"], externalIPs=vips(11)),
            EVERYWHERE,
        ),
    ),
    case(
        "IPv6 alone",
        write(service("web", ipFamilyPolicy="SingleStack", ipFamilies=["IPv6"], type="NodePort"), EVERYWHERE),
    ),
    case(
        "endpoints of one family for both",
        write(service("web", externalIPs=vips(11)), slices("web", "local-0", families=[6])),
    ),
    case(
        "of another proxy",
        write(balancer(labels={"service.kubernetes.io/service-proxy-name": "other"}), EVERYWHERE),
    ),
    case(
        "of another proxy, by an empty name",
        write(balancer(labels={"service.kubernetes.io/service-proxy-name": ""}), EVERYWHERE),
    ),
    case(
        "slices of a headless service",
        write(service("web"), slices("web", "local-0", labels={"service.kubernetes.io/headless": ""})),
    ),
    case("no slice", write(balancer(externalIPs=vips(11)))),
    case("empty slice", write(balancer(externalIPs=vips(11)), slices("web"))),
    case(
        "no endpoint ready",
        write(
            balancer(externalIPs=vips(11)),
            slices("web", unready("local-0"), Ep("remote-0", ready=False, serving=False)),
        ),
    ),
    case("no endpoints, UDP", write(balancer(port(53, "", "UDP"), externalIPs=vips(11)))),
    case("no endpoints, Local", write(balancer(externalIPs=vips(11), **LOCAL))),
    case(
        "one port of two has none",
        write(
            balancer(port(80, "a"), port(81, "b"), externalIPs=vips(11)),
            slices("web", "local-0", ports=[served(name="a")]),
        ),
    ),
)
