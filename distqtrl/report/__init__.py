"""What people read: parameter counts, figures, the state of an installation."""
