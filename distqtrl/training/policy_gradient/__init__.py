"""PPO and REINFORCE."""
