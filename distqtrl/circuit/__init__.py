"""theta_P -> p_S: gate layouts as data, the exact simulator, and the QPU a rank hosts."""
