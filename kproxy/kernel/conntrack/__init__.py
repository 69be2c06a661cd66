"""Connection tracking entries, over nfnetlink."""
