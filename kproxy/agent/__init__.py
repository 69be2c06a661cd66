"""The run loop: takes what the sources learn, keeps the kernel in step, and answers for its health."""
