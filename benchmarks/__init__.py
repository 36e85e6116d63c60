"""This proxy measured beside its peers: python3 -m benchmarks."""
