"""The nftables mode: one table per family, in which services are elements of shared maps."""
