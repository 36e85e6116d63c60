"""Processes, signals and descriptors, and what the interpreter and the kernel ask for."""
