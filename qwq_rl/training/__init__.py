"""The steps of an RL update: prompts, rollouts, rewards, traces, micro-batches, losses; each in a file of its own."""
