"""Session affinity and source ranges."""

from tests.peer.cases.words import CLIENTS, EVERYWHERE, LOCAL, PODS, balancer, case, write
from tests.peer.objects import port, served, service, slices, vips

CASES = (
    case(
        "affinity",
        write(service("kept", sessionAffinity="ClientIP"), slices("kept", "local-0", "local-1", "remote-0")),
    ),
    case(
        "affinity, all kinds",
        write(
            balancer(name="kept-everywhere", sessionAffinity="ClientIP", externalIPs=vips(11)),
            slices("kept-everywhere", "local-0", "local-1", "remote-0"),
        ),
    ),
    case(
        "affinity, Local",
        write(
            balancer(name="kept-here", sessionAffinity="ClientIP", **LOCAL),
            slices("kept-here", "local-0", "local-1", "remote-0"),
        ),
    ),
    case(
        "affinity, UDP",
        write(
            service("kept-datagrams", port(53, "", "UDP"), sessionAffinity="ClientIP"),
            slices("kept-datagrams", "local-0", "remote-0", ports=[served(protocol="UDP")]),
        ),
    ),
    case(
        "affinity comes and goes",
        write(service("kept-for-a-while"), slices("kept-for-a-while", "local-0", "local-1", "remote-0")),
        write(service("kept-for-a-while", sessionAffinity="ClientIP")),
        write(service("kept-for-a-while", sessionAffinity="None", sessionAffinityConfig=None)),
    ),
    case(
        "affinity to one that leaves",
        write(
            service("kept-until-gone", sessionAffinity="ClientIP"),
            slices("kept-until-gone", "local-0", "local-1", "remote-0"),
        ),
        write(slices("kept-until-gone", "remote-1")),
        write(slices("kept-until-gone")),
    ),
    case("source ranges", write(balancer(loadBalancerSourceRanges=CLIENTS), EVERYWHERE)),
    case(
        "source ranges with blanks",
        write(balancer(loadBalancerSourceRanges=[f" {one} " for one in CLIENTS]), EVERYWHERE),
    ),
    case(
        "source ranges of this node",
        write(balancer(loadBalancerSourceRanges=["192.168.100.0/24", "fd00:192:168:100::/64"]), EVERYWHERE),
    ),
    case("source ranges of pods", write(balancer(loadBalancerSourceRanges=PODS), EVERYWHERE)),
    case(
        "source ranges without a client",
        write(balancer(loadBalancerSourceRanges=["198.18.0.0/15", "2001:db8:99::/64"]), EVERYWHERE),
    ),
    case(
        "source ranges of one family", write(balancer(loadBalancerSourceRanges=["192.0.2.10/32"]), EVERYWHERE)
    ),
    case(
        "source ranges that are everything",
        write(
            balancer(loadBalancerSourceRanges=["0.0.0.0/0", "192.0.2.99/32", "2001:db8:1::99/128"]),
            EVERYWHERE,
        ),
    ),
    case("source ranges, Local", write(balancer(loadBalancerSourceRanges=CLIENTS, **LOCAL), EVERYWHERE)),
    case(
        "source ranges, Local, endpoints elsewhere only",
        write(balancer(loadBalancerSourceRanges=CLIENTS, **LOCAL), slices("web", "remote-0")),
    ),
    case("source ranges, no endpoints", write(balancer(loadBalancerSourceRanges=CLIENTS))),
    case(
        "source ranges and external IPs",
        write(balancer(loadBalancerSourceRanges=CLIENTS, externalIPs=vips(11)), EVERYWHERE),
    ),
    case(
        "source ranges that overlap",
        write(balancer(loadBalancerSourceRanges=["192.0.2.0/24", *CLIENTS, "192.0.2.10/31"]), EVERYWHERE),
    ),
    case(
        "source ranges of a node port",
        write(
            service("web", type="NodePort", loadBalancerSourceRanges=CLIENTS, externalIPs=vips(11)),
            EVERYWHERE,
        ),
    ),
    case(
        "source ranges change",
        write(balancer(loadBalancerSourceRanges=CLIENTS), EVERYWHERE),
        write(balancer(loadBalancerSourceRanges=PODS)),
        write(balancer()),
    ),
    case(
        "one address, two services, ranges of one",
        write(
            balancer(loadBalancerSourceRanges=CLIENTS),
            EVERYWHERE,
            balancer(port(81), name="two"),
            slices("two", "local-1"),
        ),
    ),
)
