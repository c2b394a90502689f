"""The loop on every rank: rollout, optimizer steps, agreement, records."""
