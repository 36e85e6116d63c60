"""Relays the vsock connections of an enclave or microVM to one allowlisted TCP endpoint."""

__version__ = "1.1.0"
