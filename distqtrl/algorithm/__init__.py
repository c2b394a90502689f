"""rewards -> loss: advantages and policy-gradient losses."""
