"""One connection, from accept() to its last byte."""
