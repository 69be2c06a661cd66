"""Thin commands: they read flags, call one function and turn its errors into exit codes."""
