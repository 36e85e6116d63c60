"""Where connections may go, and by which addresses."""
