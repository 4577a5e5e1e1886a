"""Prompts in, completions out: our own decoder, other engines in this process, vLLM servers over HTTP.

`sampler` says what all of them are asked for and give. `local` samples from any model of transformers, and through
`fast_qwen` from a dense Qwen, which is much faster where the model is small.
"""
