"""The decoder for Qwen models: against the model's own forward, and which models it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

from qwq_rl.inference.fast_qwen.fit import decoding_dtype, fits_qwen_decoder
from qwq_rl.inference.local import decoder_of, generate
from qwq_rl.inference.sampler import Completion

PAD, EOS, VOCABULARY = 0, 1, 50
RAGGED = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 2, 30], [3, 3], [20, 21, 22, 23]]


def build(family: str = "qwen3", tied: bool = True, **changes: object) -> PreTrainedModel:
    """Three layers, two queries a key; norm gains and biases are random too, as training makes them."""
    torch.manual_seed(4)
    shape = dict(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.25, **changes,
    )  # fmt: skip
    model = (
        Qwen3ForCausalLM(Qwen3Config(head_dim=16, **shape))  # type: ignore[arg-type]
        if family == "qwen3"
        else Qwen2ForCausalLM(Qwen2Config(**shape))  # type: ignore[arg-type]
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model.eval()


def sampled(model: PreTrainedModel, prompts: list[list[int]] = RAGGED, **changes: object) -> list[list[Completion]]:
    settings = dict(samples=6, max_tokens=30, temperature=1.0, eos_token_id=EOS, pad_token_id=PAD, seed=5)
    return generate(model, prompts, **{**settings, **changes})  # type: ignore[arg-type]


def tokens(results: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in completions] for completions in results]


def own_logprobs(model: PreTrainedModel, prompt: list[int], ids: tuple[int, ...], temperature: float) -> torch.Tensor:
    """Of `ids` after `prompt`, by one forward over both."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits / (temperature or 1.0), -1).gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_logprobs_are_those_of_the_models_own_forward(family: str, tied: bool, temperature: float) -> None:
    model = build(family, tied)
    assert fits_qwen_decoder(model)

    results = sampled(model, temperature=temperature)

    for prompt, completions in zip(RAGGED, results, strict=True):
        for completion in completions:
            expected = own_logprobs(model, prompt, completion.token_ids, temperature)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_it_samples_the_tokens_of_the_general_loop(family: str, temperature: float) -> None:
    model = build(family)

    # With this seed no random number falls between the two roundings of a sum of probabilities (about 1 in 10000 does).
    results = sampled(model, temperature=temperature, seed=6)

    assert tokens(results) == tokens(sampled(model, temperature=temperature, seed=6, fused=False))
    lengths = [len(completion.token_ids) for completions in results for completion in completions]
    assert temperature < 1.0 or 5 < sum(length < 30 for length in lengths) < len(lengths), "some end early, some do not"


def test_prompts_of_one_length_need_no_mask_and_give_the_same() -> None:
    model, prompts = build(), [[5, 6, 7], [8, 9, 10]]

    assert tokens(sampled(model, prompts)) == tokens(sampled(model, prompts, fused=False))


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 1)])
def test_any_number_of_queries_shares_a_key(heads: int, key_heads: int) -> None:
    model = build()
    model = Qwen3ForCausalLM(
        Qwen3Config(**{**model.config.to_dict(), "num_attention_heads": heads, "num_key_value_heads": key_heads})
    ).eval()

    assert fits_qwen_decoder(model)
    assert tokens(sampled(model)) == tokens(sampled(model, fused=False))


def test_weights_are_read_anew_at_every_call() -> None:
    model = build()
    before = tokens(sampled(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)

    after = tokens(sampled(model))

    assert after != before
    assert after == tokens(sampled(model, fused=False))


def test_the_model_can_be_trained_after() -> None:
    model = build().train()
    sampled(model)

    loss = model(torch.tensor(RAGGED[:1]), labels=torch.tensor(RAGGED[:1])).loss
    loss.backward()

    assert all(parameter.grad is not None for parameter in model.parameters())


def errors(model: PreTrainedModel, exact: PreTrainedModel, samples: int = 6) -> dict[str, float]:
    """Root mean squares: of the decoder's and the forward's log-probabilities against `exact`'s, and of their gap."""
    found: dict[str, list[torch.Tensor]] = {"decoder": [], "forward": [], "gap": []}
    for prompt, completions in zip(RAGGED, sampled(model, samples=samples), strict=True):
        for completion in completions:
            said = torch.tensor(completion.logprobs)
            own, truth = (own_logprobs(one, prompt, completion.token_ids, 1.0) for one in (model, exact))
            found["decoder"].append(said - truth)
            found["forward"].append(own - truth)
            found["gap"].append(said - own)
    return {name: float(torch.cat(values).square().mean().sqrt()) for name, values in found.items()}


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_16_bit_weights_stay_as_near_to_float32_as_the_models_own_forward(family: str) -> None:
    """Rounding parts both from the exact values; the decoder may not be part farther than the forward is."""
    exact = build(family)
    model = deepcopy(exact).to(dtype=torch.bfloat16)  # type: ignore[call-arg,arg-type]
    exact.load_state_dict(model.state_dict())
    assert fits_qwen_decoder(model)

    found = errors(model, exact)

    assert found["decoder"] < 1.25 * found["forward"]


def in_mixed_precision(model: PreTrainedModel) -> PreTrainedModel:
    """With what a trainer puts over its forward, which then computes in bf16 from weights in float32."""
    AcceleratorState._reset_state(True)  # of what this process trained before, in float32
    try:
        prepared: PreTrainedModel = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
    finally:
        AcceleratorState._reset_state(True)
    return prepared


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_mixed_precision_is_rounded_as_in_the_models_own_forward(family: str) -> None:
    exact, model = build(family), in_mixed_precision(build(family))
    assert decoding_dtype(model) == torch.bfloat16
    assert not fits_qwen_decoder(model)

    found = errors(model, exact)

    assert 1e-3 < found["decoder"] < 1.25 * found["forward"]
    assert found["gap"] < found["forward"], "nearer to what is trained than to the exact values"


def test_it_is_said_what_samples() -> None:
    model = build(tied=False)

    assert decoder_of(model) == "our decoder for Qwen, with matrices in float32"
    assert decoder_of(in_mixed_precision(build())) == "our decoder for Qwen, with matrices in bfloat16"
    _replace_a_layer(model)
    assert decoder_of(model) == "the forward of Qwen3ForCausalLM, one call a token"


class _Scaled(nn.Linear):
    """As an adapter or a quantised layer would stand in a model."""


def _replace_a_layer(model: PreTrainedModel) -> None:
    old = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = _Scaled(old.in_features, old.out_features, bias=False)


def _hook(model: PreTrainedModel) -> None:
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output * 2)


def _own_forward(model: PreTrainedModel) -> None:
    forward = model.forward
    model.forward = lambda *arguments, **named: forward(*arguments, **named)


def _two_dtypes(model: PreTrainedModel) -> None:
    model.lm_head.to(torch.bfloat16)


def _zero3_shard(model: PreTrainedModel) -> None:
    model.model.norm.weight.ds_id = 7


def _nowhere(model: PreTrainedModel) -> None:
    model.to(device="meta")  # type: ignore[call-arg,arg-type]


@pytest.mark.parametrize("change", [_replace_a_layer, _hook, _own_forward, _two_dtypes, _zero3_shard, _nowhere])
def test_a_changed_model_is_left_to_its_own_forward(change: Callable[[PreTrainedModel], None]) -> None:
    model = build(tied=False)
    assert fits_qwen_decoder(model)

    change(model)

    assert not fits_qwen_decoder(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_it_does_not_know_is_left_to_the_models_own_forward(changes: dict[str, object]) -> None:
    model = build(**changes)  # type: ignore[arg-type]

    assert not fits_qwen_decoder(model)
    assert tokens(sampled(model)) == tokens(sampled(model, fused=False))


def test_a_model_under_autocast_is_left_to_its_own_forward() -> None:
    model = build()

    with torch.autocast("cpu", torch.bfloat16):
        assert not fits_qwen_decoder(model)


@pytest.mark.slow
def test_the_forward_that_trl_puts_on_a_model_in_training_is_no_hindrance() -> None:
    from trl.trainer.utils import add_fused_lm_head

    model = build()
    add_fused_lm_head(model, temperature=0.5)

    assert "forward" in vars(model)
    assert fits_qwen_decoder(model)
    assert tokens(sampled(model)) == tokens(sampled(build(), fused=False))
