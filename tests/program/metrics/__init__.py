"""Metrics and probes of a running proxy, over the whole program."""
