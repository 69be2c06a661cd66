"""Facts of this node, and the kernel settings that every mode needs."""
