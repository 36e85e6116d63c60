"""What the master does: start, supervise, reload, drain."""
