"""Interchangeable ways to make the kernel deliver what the plans say."""
