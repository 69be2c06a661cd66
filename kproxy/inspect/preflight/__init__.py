"""What this node lacks for kproxy, found by probes."""
