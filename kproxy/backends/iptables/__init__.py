"""kube-proxy's KUBE-* chains of probabilistic DNAT, written with iptables-restore, changed chains only."""
