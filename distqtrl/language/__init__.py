"""A language model as the policy: a frozen decoder, an update of low rank beside it, completions and their rewards."""
