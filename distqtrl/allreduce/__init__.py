"""How ranks agree: the only part of the package that communicates."""
