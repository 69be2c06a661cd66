"""NetworkPolicy in the kernel: one nftables table per family, beside any proxy mode."""
