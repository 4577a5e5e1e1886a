"""Samplers: prompts in, completions out.

`sampler` defines the request and the result that all samplers share. `local` is our own decoder: it samples from any
model of transformers, and through `fast_qwen` from a dense Qwen, which is much faster for a small model. `engines`
makes samplers of the model in training: our decoder, vLLM through TRL, transformers' continuous batching. `vllm_http`
samples from vLLM servers; `vllm_client` talks to one of them.
"""
