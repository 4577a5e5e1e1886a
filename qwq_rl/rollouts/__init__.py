"""One round of rollouts: sample prompts, score the completions, and replace groups that teach nothing."""
