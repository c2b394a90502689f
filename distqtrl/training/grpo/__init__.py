"""GRPO of a language model: one environment step is one completion."""
