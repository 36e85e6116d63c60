"""What went wrong, for whoever makes the release."""

from __future__ import annotations


class Failed(Exception):
    """One line that says what is wrong and what to do."""
