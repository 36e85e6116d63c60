"""The relay alone."""
