"""Which endpoints count: conditions, traffic policies, hints."""

from tests.peer.cases.words import EVERYWHERE, LOCAL, balancer, case, leaving, unready, write
from tests.peer.objects import Ep, node, port, served, service, slices, vips

CASES = (
    case(
        "some not ready",
        write(service("web"), slices("web", "local-0", unready("local-1"), Ep("remote-0", ready=None))),
    ),
    case(
        "serving means nothing while not terminating",
        write(service("web"), slices("web", "local-0", Ep("local-1", ready=False, serving=True))),
    ),
    case(
        "ready and terminating",
        write(
            service("web"),
            slices("web", "local-0", Ep("local-1", ready=True, serving=True, terminating=True)),
        ),
        since=(1, 26),
    ),
    case(
        "one terminates, one is ready",
        write(service("web"), slices("web", "local-0", leaving("local-1"))),
    ),
    case(
        "all terminate and serve",
        write(balancer(), slices("web", leaving("local-0"), leaving("remote-0"))),
        since=(1, 26),
    ),
    case(
        "all terminate and none serves",
        write(balancer(), slices("web", Ep("local-0", ready=False, serving=False, terminating=True))),
    ),
    case(
        "terminating without saying whether it serves",
        write(balancer(), slices("web", Ep("local-0", ready=False, terminating=True))),
        since=(1, 26),
    ),
    case(
        "the local one terminates, Local",
        write(balancer(**LOCAL), slices("web", leaving("local-0"), "remote-0")),
        since=(1, 26),
    ),
    case(
        "the local one terminates, others are not ready, Local",
        write(balancer(**LOCAL), slices("web", leaving("local-0"), unready("remote-0"))),
        since=(1, 26),
    ),
    case(
        "remote ones terminate, Local",
        write(balancer(**LOCAL), slices("web", unready("local-0"), leaving("remote-0"))),
        since=(1, 26),
    ),
    case(
        "local ones terminate, both Local",
        write(
            balancer(internalTrafficPolicy="Local", **LOCAL),
            slices("web", leaving("local-0"), "remote-0"),
        ),
        since=(1, 26),
    ),
    case("Local, endpoints here and there", write(balancer(externalIPs=vips(11), **LOCAL), EVERYWHERE)),
    case(
        "Local, endpoints elsewhere only",
        write(balancer(externalIPs=vips(11), **LOCAL), slices("web", "remote-0")),
    ),
    case(
        "Local, UDP",
        write(
            balancer(port(53, "", "UDP"), **LOCAL),
            slices("web", "local-0", "remote-0", ports=[served(protocol="UDP")]),
        ),
    ),
    case(
        "Local without a cluster's own type", write(service("web", externalIPs=vips(11), **LOCAL), EVERYWHERE)
    ),
    case("Local node port", write(service("web", type="NodePort", **LOCAL), EVERYWHERE)),
    case(
        "Local node port, endpoints elsewhere only",
        write(service("web", type="NodePort", **LOCAL), slices("web", "remote-0")),
    ),
    case(
        "endpoints that name no node, Local",
        write(balancer(**LOCAL), slices("web", Ep("local-0", node_name=None), "remote-0")),
    ),
    case(
        "endpoints that name another node, Local",
        write(
            balancer(**LOCAL),
            slices("web", Ep("local-1", node_name="node-c"), Ep("remote-0", node_name="node-a")),
        ),
    ),
    case("internal Local", write(balancer(internalTrafficPolicy="Local"), EVERYWHERE), since=(1, 22)),
    case(
        "internal Local, endpoints elsewhere only",
        write(balancer(internalTrafficPolicy="Local"), slices("web", "remote-0")),
        since=(1, 22),
    ),
    case("both Local", write(balancer(internalTrafficPolicy="Local", **LOCAL), EVERYWHERE), since=(1, 22)),
    case(
        "both Local, endpoints elsewhere only",
        write(balancer(internalTrafficPolicy="Local", **LOCAL), slices("web", "remote-0")),
        since=(1, 22),
    ),
    case(
        "internal Local, not reachable from outside",
        write(service("web", internalTrafficPolicy="Local"), slices("web", "local-1", "remote-0")),
        since=(1, 22),
    ),
    case(
        "zone hints",
        write(balancer(), slices("web", Ep("local-0", zones=("zone-a",)), Ep("remote-0", zones=("zone-b",)))),
        since=(1, 33),
    ),
    case(
        "zone hints, none for this zone",
        write(balancer(), slices("web", Ep("local-0", zones=("zone-c",)), Ep("remote-0", zones=("zone-b",)))),
        since=(1, 33),
    ),
    case(
        "zone hints, one lacks them",
        write(
            balancer(),
            slices("web", Ep("local-0", zones=("zone-b",)), Ep("local-1", zones=("zone-a",)), "remote-0"),
        ),
        since=(1, 33),
    ),
    case(
        "zone hints, one that is not ready lacks them",
        write(
            balancer(),
            slices(
                "web",
                Ep("local-0", zones=("zone-b",)),
                Ep("local-1", zones=("zone-a",)),
                unready("remote-0"),
            ),
        ),
        since=(1, 33),
    ),
    case(
        "zone hints and Local",
        write(
            balancer(**LOCAL),
            slices(
                "web",
                Ep("local-0", zones=("zone-b",)),
                Ep("local-1", zones=("zone-a",)),
                Ep("remote-0", zones=("zone-a",)),
            ),
        ),
        since=(1, 33),
    ),
    case(
        "node hints",
        write(
            balancer(),
            slices(
                "web",
                Ep("local-0", zones=("zone-a",), nodes=("node-b",)),
                Ep("remote-0", zones=("zone-a",), nodes=("node-a",)),
            ),
        ),
        since=(1, 35),
    ),
    case(
        "node hints for others, zone hints for all",
        write(
            balancer(),
            slices(
                "web",
                Ep("local-0", zones=("zone-a",), nodes=("node-b",)),
                Ep("remote-0", zones=("zone-b",), nodes=("node-c",)),
            ),
        ),
        since=(1, 35),
    ),
    case(
        "the node changes its zone",
        write(
            service("web"), slices("web", Ep("local-0", zones=("zone-a",)), Ep("remote-0", zones=("zone-b",)))
        ),
        write(node(labels={"topology.kubernetes.io/zone": "zone-b"})),
        since=(1, 33),
    ),
    case(
        "the node has no zone",
        write(node(labels={})),
        write(
            service("web"), slices("web", Ep("local-0", zones=("zone-a",)), Ep("remote-0", zones=("zone-b",)))
        ),
        since=(1, 33),
    ),
)
