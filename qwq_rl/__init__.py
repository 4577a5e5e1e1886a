"""Two-stage reinforcement learning for reasoning models: recipes in, trained model out."""

__version__ = "0.1.0"
