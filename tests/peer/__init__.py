"""kproxy beside a real kube-proxy: the same objects, the same packets, the same outcomes."""
