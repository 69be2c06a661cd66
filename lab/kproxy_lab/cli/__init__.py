"""The commands that the lab adds to `kproxy`: demo and bench."""
