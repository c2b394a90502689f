"""What this installation and its ranks can do."""
