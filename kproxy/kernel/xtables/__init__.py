"""iptables and ip6tables, in both variants: find the programs, restore, save, and detect changes."""
