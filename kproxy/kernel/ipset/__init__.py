"""The kernel's ipsets, over nfnetlink."""
