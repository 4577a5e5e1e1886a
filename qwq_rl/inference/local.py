"""The loop over batches and tokens that turns prompts into samples.

`transformers.generate` pays for its generality at every token, which on a small model is most of the time. This loop
keeps to what sampling needs: prompts of like length share a batch, rows that have finished leave it, and what several
samples have in common, their prompt and the tokens up to where they part, is computed once. Those of a trained policy
part late: each draws with noise of its own, and mostly the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import torch

from qwq_rl.inference.fast_qwen.decoder import QwenDecoder
from qwq_rl.inference.fast_qwen.fit import decoding_dtype
from qwq_rl.inference.fast_qwen.weights import read_weights
from qwq_rl.inference.sampler import Completion

_NOISE_STEPS = 16
"""Random numbers are made for this many steps at once: a batch of a few rows spends its time in calls."""


_LEFT = 0.9
"""Texts that nobody continues are kept until no more than this share is left, since leaving them behind has a price."""

_SMALL = 500_000
"""Parameters of a model whose operations are too short to be shared: threads would but wait for each other."""


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class _Decoder(Protocol):
    """Texts that have been read to some token: the logits of their next ones, a step, and which of them to go on with.

    `keep` may name one several times, which then parts into several.
    """

    logits: torch.Tensor

    def advance(self, chosen: torch.Tensor) -> None: ...

    def keep(self, texts: torch.Tensor) -> None: ...


def generate(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    samples: int,
    max_tokens: int,
    temperature: float,
    eos_token_id: int,
    pad_token_id: int,
    seed: int,
    batch_rows: int = 1024,
    keys: Sequence[int] | None = None,
    on_batch: Callable[[int], None] | None = None,
    fused: bool = True,
) -> list[list[Completion]]:
    """Sample `samples` continuations of at most `max_tokens` tokens of every prompt.

    Returns a list a prompt, in the order of `prompt_ids`, each with its samples in order. `temperature` 0 takes the
    likeliest token. A batch holds at most `batch_rows` sequences (or one prompt's samples). `keys` names each prompt
    in the random numbers, so that a prompt keeps its noise wherever it stands; its position where None. `on_batch` is
    told after each batch how many prompts are finished. `fused` False keeps a model to its own forward where the
    faster decoder would take it; the tokens are the same but where rounding decides.
    Raises ValueError on an empty prompt or on numbers out of range.
    """
    if samples < 1 or max_tokens < 1 or temperature < 0.0 or not all(len(prompt) for prompt in prompt_ids):
        raise ValueError("generate needs samples >= 1, max_tokens >= 1, temperature >= 0 and no empty prompt")
    keys = range(len(prompt_ids)) if keys is None else keys
    order = sorted(range(len(prompt_ids)), key=lambda index: len(prompt_ids[index]))
    prompts_a_batch = max(1, batch_rows // samples)
    results: list[list[Completion]] = [[] for _ in prompt_ids]
    was_training = model.training
    model.eval()
    try:
        dtype = decoding_dtype(model) if fused else None
        # What a model of any kind keeps from its forward may be needed in training, so there no inference tensors.
        with torch.inference_mode() if dtype else torch.no_grad(), _threads_for(model):
            read = _reader(model, dtype, pad_token_id)
            for start in range(0, len(order), prompts_a_batch):
                chosen = order[start : start + prompts_a_batch]
                prompts = [prompt_ids[index] for index in chosen]
                noise = _noise(streams(seed, [keys[index] for index in chosen], samples), max_tokens, model.device)
                rows = _decode(read(prompts, max_tokens), samples, noise, max_tokens, temperature, eos_token_id)
                for place, index in enumerate(chosen):
                    results[index] = rows[place * samples : (place + 1) * samples]
                if on_batch:
                    on_batch(start + len(chosen))
    finally:
        model.train(was_training)
    return results


def decoder_of(model: Any) -> str:
    """What `generate` gets its logits from, in words."""
    dtype = decoding_dtype(model)
    if dtype is None:
        return f"the forward of {type(model).__name__}, one call a token"
    return f"our decoder for Qwen, with matrices in {str(dtype).removeprefix('torch.')}"


def _reader(
    model: Any, dtype: torch.dtype | None, pad_token_id: int
) -> Callable[[Sequence[Sequence[int]], int], _Decoder]:
    """What reads a batch of prompts; the weights are read here, once for all batches."""
    if dtype is None:
        return lambda prompts, max_tokens: ModelDecoder(model, prompts, pad_token_id, max_tokens)
    weights = read_weights(model, dtype)
    return lambda prompts, max_tokens: QwenDecoder(model, weights, prompts, max_tokens)


@contextmanager
def _threads_for(model: Any) -> Iterator[None]:
    """Within, a small model on a CPU computes in one thread."""
    before = torch.get_num_threads()
    small = model.device.type == "cpu" and sum(parameter.numel() for parameter in model.parameters()) < _SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _noise(row_streams: np.ndarray, max_tokens: int, device: torch.device) -> Iterator[torch.Tensor]:
    """The random number of each row of the whole batch, (rows,), step by step."""
    for first in range(0, max_tokens, _NOISE_STEPS):
        count = min(_NOISE_STEPS, max_tokens - first)
        yield from torch.from_numpy(uniform(row_streams, first, count)).to(device)


def _decode(
    decoder: _Decoder, samples: int, noise: Iterator[torch.Tensor], max_tokens: int, temperature: float,
    eos_token_id: int,
) -> list[Completion]:  # fmt: skip
    """Continue each text of the decoder to `samples` completions, (rows,) in all."""
    texts, device = len(decoder.logits), decoder.logits.device
    written = torch.zeros(max_tokens, texts * samples, dtype=torch.long, device=device)
    logprobs = torch.zeros(max_tokens, texts * samples, device=device)
    lengths = torch.full((texts * samples,), max_tokens, device=device)
    alive = torch.arange(texts * samples, device=device)
    of = torch.arange(texts, device=device).repeat_interleave(samples)
    """The text that each row that is alive has come to."""
    for step, numbers in enumerate(noise):
        chosen, chosen_logprobs = choose(decoder.logits, temperature, numbers[alive], of)
        written[step, alive], logprobs[step, alive] = chosen, chosen_logprobs
        goes_on = chosen != eos_token_id
        if not bool(goes_on.all()):
            lengths[alive[~goes_on]] = step + 1
            alive, of, chosen = alive[goes_on], of[goes_on], chosen[goes_on]
        if len(alive) == 0 or step + 1 == max_tokens:
            break
        of = _part(decoder, of, chosen)
    return _completions(written.T, logprobs.T, lengths, eos_token_id)


def _part(decoder: _Decoder, of: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Append each row's token `chosen` to its text `of`, (rows,); returns which text it has come to now."""
    texts = len(decoder.logits)
    keys, now = torch.unique(of << 32 | chosen, return_inverse=True)
    before, tokens = keys >> 32, keys & 0xFFFFFFFF
    first = torch.ones_like(before, dtype=torch.bool)
    first[1:] = before[1:] != before[:-1]
    if _LEFT * texts < len(before) and bool(first.all()):
        appended = torch.zeros(texts, dtype=torch.long, device=of.device)
        appended[before] = tokens
        decoder.advance(appended)
        return of
    order = _arranged(before, first)
    decoder.keep(before[order])
    decoder.advance(tokens[order])
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=of.device)
    return places[now]


def _arranged(before: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """An order of texts, (texts,), in which as many as can stay where the ones `before` them stood.

    Only the `first` of those that come from one can have its place; the others fill the holes.
    """
    stays = first & (before < len(before))
    order = torch.full_like(before, -1)
    order[before[stays]] = stays.nonzero()[:, 0]
    order[order < 0] = (~stays).nonzero()[:, 0]
    return order


def _completions(
    written: torch.Tensor, logprobs: torch.Tensor, lengths: torch.Tensor, eos_token_id: int
) -> list[Completion]:
    completions = []
    for ids, probabilities, length in zip(written.tolist(), logprobs.tolist(), lengths.tolist(), strict=True):
        finish: Literal["stop", "length"] = "stop" if ids[length - 1] == eos_token_id else "length"
        completions.append(Completion(tuple(ids[:length]), finish, tuple(probabilities[:length])))
    return completions


def choose(
    logits: torch.Tensor, temperature: float, noise: torch.Tensor, of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token and its log-probability for each row, by inverting the cumulated sum of probabilities.

    `of`, (rows,), says which of `logits`, (texts, vocabulary), a row draws from, and `noise`, (rows,), lies in [0, 1);
    temperature 0 takes the likeliest token, and its log-probability at temperature 1.
    """
    if temperature == 0.0:
        best = logits.argmax(-1)
        return best[of], torch.log_softmax(logits.float(), -1).gather(1, best[:, None])[of, 0]
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    probabilities = torch.softmax(scaled, -1)
    cumulated = probabilities.cumsum(-1)[of]
    # The last sum is 1 but for rounding; scaled by it, the noise never points past the last possible token.
    threshold = noise[:, None] * cumulated[:, -1:]
    chosen = torch.searchsorted(cumulated, threshold, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    return chosen, probabilities[of, chosen].log_()


def streams(seed: int, keys: Sequence[int], samples: int) -> np.ndarray:
    """The start of each row's stream of random numbers, (prompts * samples,), from (seed, key, sample)."""
    state = _mixed(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    state = _mixed(state ^ np.array([key % 2**64 for key in keys], dtype=np.uint64) + _GOLDEN)
    return _mixed((state[:, None] ^ np.arange(samples, dtype=np.uint64)) + _GOLDEN).reshape(-1)


def uniform(streams: np.ndarray, first: int, count: int) -> np.ndarray:
    """Numbers `first` to `first + count - 1` of every stream, (count, rows): float32 in [0, 1)."""
    steps = np.array([(int(_GOLDEN) * (step + 1)) % 2**64 for step in range(first, first + count)], dtype=np.uint64)
    bits = _mixed(streams + steps[:, None])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): 64 bits in, 64 well-mixed bits out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class ModelDecoder:
    """Texts that begin with a prompt each and grow by a token at a time."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int, max_tokens: int) -> None:
        """Read `prompts`; `logits` are then those of their ends."""
        self.model = model
        tokens, mask = _left_padded(prompts, pad_token_id, model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        self.logits: torch.Tensor = output.logits[:, -1]
        """Of each text's next token, (texts, vocabulary)."""
        self.cache = output.past_key_values
        self.mask = torch.cat([mask, mask.new_ones(len(mask), max_tokens)], 1)
        self.position = positions[:, -1:]
        self.used = tokens.shape[1]

    def advance(self, chosen: torch.Tensor) -> None:
        """Append `chosen`, (texts,), and compute the logits after it."""
        self.used += 1
        self.position = self.position + 1
        output = self.model(
            chosen[:, None], attention_mask=self.mask[:, : self.used], position_ids=self.position,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.logits = output.logits[:, -1]

    def keep(self, texts: torch.Tensor) -> None:
        """Go on with these texts alone, in this order, and with one as often as it is named."""
        self.cache.reorder_cache(texts)
        self.mask, self.position = self.mask[texts], self.position[texts]


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (prompts, longest), padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
