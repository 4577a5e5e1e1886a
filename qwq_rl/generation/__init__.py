"""Samples from a causal language model: many prompts, several samples each, in large batches.

`loop` runs the batches and draws the tokens; `model_decoder` gets the logits from any model's own forward,
`qwen_decoder` from the weights of a dense Qwen, faster where the model is small; `qwen_fit` says which models that is.
"""

from qwq_rl.generation.loop import generate
from qwq_rl.generation.sampling import Completion

__all__ = ["Completion", "generate"]
