"""A float policy and recorded observations -> integer weights and the grids that give every integer its meaning."""
