"""The iptables mode: the running mode, its leftovers, its preview."""
