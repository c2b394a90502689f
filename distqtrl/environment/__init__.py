"""actions -> observations, rewards: Gymnasium environments, stepped as one batch per rank."""
