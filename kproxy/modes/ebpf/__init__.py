"""The eBPF mode: the nftables mode with a socket table in front of it."""
