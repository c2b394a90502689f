"""Files that are whole or refused."""
