"""Sets of the kernel's ipset, over nfnetlink."""
