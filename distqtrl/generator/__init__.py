"""circuit and mapping as one module: () -> w_M, and the controls."""
