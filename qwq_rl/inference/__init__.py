"""Samples from a causal language model: many prompts, several samples each, in large batches.

`loop` runs the batches and draws the tokens; `model_decoder` gets the logits from any model's own forward,
`qwen_decoder` from the weights of a dense Qwen (`qwen_layer`, `shared_cache`), faster where the model is small;
`qwen_fit` says which models that is, and in which precision.
"""

from qwq_rl.inference.local import decoder_of, generate
from qwq_rl.inference.sampler import Completion

__all__ = ["Completion", "decoder_of", "generate"]
