"""`kproxy explain`: what is desired for a packet, what the kernel would do with it, and the difference."""
