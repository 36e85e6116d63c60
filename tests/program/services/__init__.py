"""Several services under one master, over the whole program."""
