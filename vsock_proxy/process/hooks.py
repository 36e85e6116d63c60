"""Imports logging and threading without their fork hooks.

In every child these hooks make the modules' locks again, in case another thread holds one. Here
only processes without threads fork, so no other thread does. But a child that runs the hooks gets
copies of the pages that they use. Without them a worker takes 0.27 MiB less on CPython 3.13 and 0.4
MiB less on 3.11; once it has served, 0.17 and 0.23 MiB less.

Both modules work without os.register_at_fork(), so it is removed while they are imported. If
something has imported them before, their hooks stay and do no harm.
"""

from __future__ import annotations

import importlib
import os

NAME = "register_at_fork"


def import_without_hooks() -> None:
    """Import both. Call it before importing any part of the program that needs them."""
    register = vars(os).pop(NAME, None)
    try:
        # This imports threading too.
        importlib.import_module("logging")
    finally:
        if register is not None:
            vars(os)[NAME] = register
