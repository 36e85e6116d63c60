"""The proxy listens on TCP."""
