"""An endpoint that has a name, and two addresses that the name may have."""

NAME = "endpoint.test"
HERE, THERE = "127.0.0.2", "127.0.0.3"
