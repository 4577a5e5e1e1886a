"""One round: prompts are sampled, scored, and sampled again where groups teach nothing."""
