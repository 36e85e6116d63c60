"""What the operator wrote, checked and typed."""
