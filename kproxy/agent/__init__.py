"""The run loop: applies the objects from the sources to the kernel and reports on its health."""
