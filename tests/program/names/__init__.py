"""An endpoint given by name, over the whole program."""
