"""One part of the program at a time, within the test or a child of it."""
