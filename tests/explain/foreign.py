"""Rules of other programs, of many kinds, as a host firewall or a network plugin writes them."""

from kproxy_lab.lab import Namespace

NFT = """
table inet firewall {
  set banned { type ipv4_addr; flags interval; elements = { 192.0.2.12/30, 198.51.100.0/24 }; }
  set seen { type inet_proto . inet_service; elements = { tcp . 9, udp . 8080, udp . 8081 }; }
  chain early {
    type filter hook prerouting priority -300;
    ip protocol sctp ip daddr 203.0.113.64/26 notrack
    fib saddr . iif oif missing drop
    meta l4proto udp fib daddr type { broadcast, multicast } drop
  }
  chain forwarded {
    type filter hook forward priority -5; policy drop;
    ip saddr @banned drop
    tcp dport { 22, 80-90, 8081 } ct state new limit rate 5000/second burst 2000 packets accept
    ct state vmap { established : accept, related : accept, invalid : drop, new : jump fresh }
    iifname "mynet0" counter accept
    iifname { "eth0", "eth1" } meta l4proto { udp, sctp } accept
    ip6 daddr fd00:10:244:1::/64 tcp dport 8080 accept
    ip saddr 10.244.2.10 ip daddr 10.244.1.10 accept
    ip daddr 10.244.0.0/16 tcp dport != 22 log prefix "seen" accept
    meta mark & 0xff00 == 0x100 accept
    tcp flags & (fin | syn | rst | ack) == syn ip6 nexthdr tcp accept
  }
  chain fresh {
    meta l4proto . th dport @seen ct mark set 0x7 return
    ip6 saddr fd00:10:244:2::10-fd00:10:244:2::11 reject
    oif "eth0" meta nfproto ipv6 meta mark set meta mark | 0x100
  }
  chain incoming {
    type filter hook input priority 10;
    iifname != "lo" tcp dport 30100-30120 ip saddr 192.0.2.0/28 drop
  }
  chain translated {
    type nat hook prerouting priority -110;
    ip daddr 192.168.100.10 udp dport 7777 dnat ip to 10.244.1.10:9
  }
}
"""

IPTABLES = {
    "raw": ["-A PREROUTING -p sctp -d {LB} -j CT --notrack", "-A PREROUTING -m rpfilter --invert -j DROP"],
    "mangle": [
        "-A PREROUTING -i eth0 -m multiport -p udp --dports 53,30200:30205 -j MARK --set-xmark 256/256",
        "-A PREROUTING -m mark ! --mark 0x100/0x100 -j LOG",
        "-A FORWARD -m mark --mark 0x100/0x100 -m addrtype ! --src-type LOCAL -j CONNMARK --save-mark",
    ],
    "nat": [
        "-I PREROUTING -p udp -d {NODE} --dport 7777 -j DNAT --to-destination {POD}",
        "-A POSTROUTING -s {CLIENT} -o mynet0 -p udp -j MASQUERADE",
    ],
    "filter": [
        "-N CUSTOM",
        "-A CUSTOM -p tcp --syn -m limit --limit 5000/sec --limit-burst 2000 -j RETURN",
        "-A CUSTOM -m iprange --src-range {RANGE} -j REJECT",
        "-A CUSTOM -m connmark --mark 0x100/0x100 -g LAST",
        '-A CUSTOM -m comment --comment "to the end" -m conntrack --ctstate NEW,UNTRACKED -j LAST',
        "-A LAST -p udp --dport 8081 -o eth0 -j DROP",
        "-I FORWARD ! -i lo -j CUSTOM",
        "-P INPUT ACCEPT",
        "-A INPUT -i eth0 -p tcp --dport 30100:30110 -j DROP",
        "-A FORWARD -i mynet0 -j ACCEPT",
        "-A FORWARD -d {PODS} -j ACCEPT",
        "-A FORWARD -p udp -j ACCEPT",
        "-P FORWARD DROP",
    ],
}
_WORDS = {
    "iptables": {
        "{LB}": "203.0.113.64/26",
        "{NODE}": "192.168.100.10",
        "{POD}": "10.244.1.10:9",
        "{CLIENT}": "192.0.2.10",
        "{RANGE}": "10.244.2.11-10.244.2.12",
        "{PODS}": "10.244.0.0/16",
    },
    "ip6tables": {
        "{LB}": "2001:db8:2::40/122",
        "{NODE}": "fd00:192:168:100::10",
        "{POD}": "[fd00:10:244:1::10]:9",
        "{CLIENT}": "2001:db8:1::10",
        "{RANGE}": "fd00:10:244:2::11-fd00:10:244:2::12",
        "{PODS}": "fd00:10:244::/56",
    },
}


def plant_nft(node: Namespace) -> None:
    """Write the table of a firewall."""
    node.run(["nft", "-f", "-"], stdin=NFT)


def plant_iptables(node: Namespace, variant: str) -> None:
    """Write rules into the tables that kproxy uses too, in both families."""
    for stem, words in _WORDS.items():
        text = ""
        for table, rules in IPTABLES.items():
            lines = [":CUSTOM - [0:0]", ":LAST - [0:0]"] if table == "filter" else []
            for rule in rules:
                line = rule
                for name, value in words.items():
                    line = line.replace(name, value)
                if line.startswith("-P "):
                    _, chain, policy = line.split()
                    lines.insert(0, f":{chain} {policy} [0:0]")
                elif not line.startswith("-N "):
                    lines.append(line)
            text += "\n".join([f"*{table}", *lines, "COMMIT", ""])
        node.run([f"{stem}-{variant}-restore", "--noflush"], stdin=text)
