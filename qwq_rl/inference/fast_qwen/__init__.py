"""A dense Qwen computed from its weights, for sampling and for training on a CPU."""
