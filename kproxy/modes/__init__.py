"""The proxy modes: what each finds in the kernel, builds, and leaves behind."""
