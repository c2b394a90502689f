"""p_S -> w_M: basis states and their probabilities become policy weights."""
