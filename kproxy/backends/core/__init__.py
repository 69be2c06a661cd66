"""Code shared by the backends."""
