"""The services of the file, without starting the program."""
