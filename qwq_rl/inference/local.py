"""Our own sampling loop over batches and tokens. Read `generate`, then `_decode` and `_append`.

`transformers.generate` is general, which costs time at every token: most of the time on a small model. This loop does
only what sampling needs. Prompts of similar length share a batch. Rows that have finished leave the batch. Samples of
one prompt are computed together as one "text" until they differ. With a trained policy that happens late: each sample
has its own noise, but most tokens are nearly certain, so the samples draw the same ones.

A "row" is one sample; a "text" is one sequence in the decoder, which stands for all rows that have the same tokens.
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
"""Random numbers are drawn for this many steps at once, since with few rows the calls cost most of the time."""

_COMPACT_BELOW = 0.9
"""Texts that no row continues stay in the decoder until at most this share is in use: removing them has a cost."""

_SMALL_MODEL = 500_000
"""A model with fewer parameters runs in one thread: its operations are so short that threads only wait."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The increment of SplitMix64: 2^64 divided by the golden ratio."""


class _Decoder(Protocol):
    """The texts of a batch, each read up to its last token.

    `logits` are those of each text's next token. `advance` appends one token to each text. `keep` selects texts; one
    that it names several times is copied.
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
    """Sample `samples` completions of at most `max_tokens` tokens for every prompt.

    Returns one list per prompt, in the order of `prompt_ids`, each with its samples in order. `temperature` 0 takes the
    likeliest token. A batch holds at most `batch_rows` sequences (or one prompt's samples). `keys` has one number per
    prompt, which with `seed` fixes its noise wherever the prompt stands; None takes its position. `on_batch` is called
    after each batch with the number of finished prompts. `fused` False uses the model's own forward even where the
    faster decoder fits; the tokens are the same except where rounding decides.
    Raises ValueError for an empty prompt or numbers out of range.
    """
    if samples < 1 or max_tokens < 1 or temperature < 0.0 or not all(len(prompt) for prompt in prompt_ids):
        raise ValueError("generate needs samples >= 1, max_tokens >= 1, temperature >= 0 and no empty prompt")
    keys = range(len(prompt_ids)) if keys is None else keys
    # Prompts of similar length share a batch, so that little is spent on padding.
    order = sorted(range(len(prompt_ids)), key=lambda index: len(prompt_ids[index]))
    prompts_a_batch = max(1, batch_rows // samples)
    results: list[list[Completion]] = [[] for _ in prompt_ids]
    was_training = model.training
    model.eval()
    try:
        dtype = decoding_dtype(model) if fused else None
        # A model's own forward may keep tensors that training needs later. Inference tensors cannot be used there, so
        # inference mode is only for our decoder.
        with torch.inference_mode() if dtype else torch.no_grad(), _threads_for(model):
            read = _reader(model, dtype, pad_token_id)
            for start in range(0, len(order), prompts_a_batch):
                indices = order[start : start + prompts_a_batch]
                prompts = [prompt_ids[index] for index in indices]
                noise = _noise(streams(seed, [keys[index] for index in indices], samples), max_tokens, model.device)
                completions = _decode(read(prompts, max_tokens), samples, noise, max_tokens, temperature, eos_token_id)
                for position, index in enumerate(indices):
                    results[index] = completions[position * samples : (position + 1) * samples]
                if on_batch:
                    on_batch(start + len(indices))
    finally:
        model.train(was_training)
    return results


def decoder_of(model: Any) -> str:
    """Name, for a log line, the decoder that `generate` uses for `model`."""
    dtype = decoding_dtype(model)
    if dtype is None:
        return f"the forward of {type(model).__name__}, one call a token"
    return f"our decoder for Qwen, with matrices in {str(dtype).removeprefix('torch.')}"


def _reader(
    model: Any, dtype: torch.dtype | None, pad_token_id: int
) -> Callable[[Sequence[Sequence[int]], int], _Decoder]:
    """A function that makes the decoder of a batch of prompts. The weights are read here, once for all batches."""
    if dtype is None:
        return lambda prompts, max_tokens: ModelDecoder(model, prompts, pad_token_id, max_tokens)
    weights = read_weights(model, dtype)
    return lambda prompts, max_tokens: QwenDecoder(model, weights, prompts, max_tokens)


@contextmanager
def _threads_for(model: Any) -> Iterator[None]:
    """Inside, a small model on a CPU computes in one thread."""
    before = torch.get_num_threads()
    small = model.device.type == "cpu" and sum(parameter.numel() for parameter in model.parameters()) < _SMALL_MODEL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _noise(row_streams: np.ndarray, max_tokens: int, device: torch.device) -> Iterator[torch.Tensor]:
    """At each step one random number per row of the whole batch, (rows,)."""
    for first in range(0, max_tokens, _NOISE_STEPS):
        count = min(_NOISE_STEPS, max_tokens - first)
        yield from torch.from_numpy(uniform(row_streams, first, count)).to(device)


def _decode(
    decoder: _Decoder, samples: int, noise: Iterator[torch.Tensor], max_tokens: int, temperature: float,
    eos_token_id: int,
) -> list[Completion]:  # fmt: skip
    """Continue each text of the decoder to `samples` completions. Rows: all samples of the first prompt come first."""
    texts, device = len(decoder.logits), decoder.logits.device
    token_ids = torch.zeros(max_tokens, texts * samples, dtype=torch.long, device=device)
    logprobs = torch.zeros(max_tokens, texts * samples, device=device)
    lengths = torch.full((texts * samples,), max_tokens, device=device)
    alive = torch.arange(texts * samples, device=device)
    text_of = torch.arange(texts, device=device).repeat_interleave(samples)
    """For each row in `alive`, the text that it continues."""
    for step, step_noise in enumerate(noise):
        # Noise is drawn for all rows and indexed by row: a row's tokens do not depend on which others have finished.
        chosen, chosen_logprobs = choose(decoder.logits, temperature, step_noise[alive], text_of)
        token_ids[step, alive], logprobs[step, alive] = chosen, chosen_logprobs
        unfinished = chosen != eos_token_id
        if not bool(unfinished.all()):
            lengths[alive[~unfinished]] = step + 1
            alive, text_of, chosen = alive[unfinished], text_of[unfinished], chosen[unfinished]
        if len(alive) == 0 or step + 1 == max_tokens:
            break
        text_of = _append(decoder, text_of, chosen)
    return _completions(token_ids.T, logprobs.T, lengths, eos_token_id)


def _append(decoder: _Decoder, text_of: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Append each row's token `chosen` to its text `text_of`, (rows,). Returns the text that each row continues now.

    Rows of one text that drew different tokens part: the text is copied, once for each further token.
    """
    texts = len(decoder.logits)
    # One key for each distinct pair (text, token), sorted by text; a token id fits into 32 bits.
    keys, child_of = torch.unique(text_of << 32 | chosen, return_inverse=True)
    parents, tokens = keys >> 32, keys & 0xFFFFFFFF
    is_first = torch.ones_like(parents, dtype=torch.bool)
    is_first[1:] = parents[1:] != parents[:-1]
    # No text parts and most are in use: advance all of them without moving the cache. Unused ones get token 0.
    if _COMPACT_BELOW * texts < len(parents) and bool(is_first.all()):
        appended = torch.zeros(texts, dtype=torch.long, device=text_of.device)
        appended[parents] = tokens
        decoder.advance(appended)
        return text_of
    order = _in_place_order(parents, is_first)
    decoder.keep(parents[order])
    decoder.advance(tokens[order])
    new_index = torch.empty_like(order)
    new_index[order] = torch.arange(len(order), device=text_of.device)
    return new_index[child_of]


def _in_place_order(parents: torch.Tensor, is_first: torch.Tensor) -> torch.Tensor:
    """An order of the new texts, (texts,), in which as many as possible stay at the index of their parent.

    `parents`, (texts,): the text that each comes from. Of several with one parent only the first (`is_first`) can have
    its index; the others fill the free ones. What stays need not be copied in the cache.
    """
    stays = is_first & (parents < len(parents))
    order = torch.full_like(parents, -1)
    order[parents[stays]] = stays.nonzero()[:, 0]
    order[order < 0] = (~stays).nonzero()[:, 0]
    return order


def _completions(
    token_ids: torch.Tensor, logprobs: torch.Tensor, lengths: torch.Tensor, eos_token_id: int
) -> list[Completion]:
    completions = []
    for ids, row_logprobs, length in zip(token_ids.tolist(), logprobs.tolist(), lengths.tolist(), strict=True):
        finish: Literal["stop", "length"] = "stop" if ids[length - 1] == eos_token_id else "length"
        completions.append(Completion(tuple(ids[:length]), finish, tuple(row_logprobs[:length])))
    return completions


def choose(
    logits: torch.Tensor, temperature: float, noise: torch.Tensor, of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token for each row, with its log-probability, by inverting the cumulative distribution.

    `of`, (rows,): the text whose `logits`, (texts, vocabulary), a row draws from. `noise`, (rows,), lies in [0, 1).
    Temperature 0 takes the likeliest token, with its log-probability at temperature 1.
    """
    if temperature == 0.0:
        best = logits.argmax(-1)
        return best[of], torch.log_softmax(logits.float(), -1).gather(1, best[:, None])[of, 0]
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    probabilities = torch.softmax(scaled, -1)
    cumulated = probabilities.cumsum(-1)[of]
    # The last sum is 1 except for rounding. Noise scaled by it never points past the last possible token.
    threshold = noise[:, None] * cumulated[:, -1:]
    chosen = torch.searchsorted(cumulated, threshold, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    return chosen, probabilities[of, chosen].log_()


def streams(seed: int, keys: Sequence[int], samples: int) -> np.ndarray:
    """The start of each row's stream of random numbers, (prompts * samples,), from (seed, key, sample number)."""
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
    """Decodes with the model's own forward and its cache. Each text begins with a prompt and grows token by token."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int, max_tokens: int) -> None:
        """Read `prompts`; `logits` are then those of each prompt's next token."""
        self.model = model
        tokens, mask = _left_padded(prompts, pad_token_id, model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        self.logits: torch.Tensor = output.logits[:, -1]
        """(texts, vocabulary), for each text's next token."""
        self.cache = output.past_key_values
        # Padding stands on the left, so all later tokens of a text are real.
        self.mask = torch.cat([mask, mask.new_ones(len(mask), max_tokens)], 1)
        self.position = positions[:, -1:]
        self.used = tokens.shape[1]

    def advance(self, chosen: torch.Tensor) -> None:
        """Append one token to each text, `chosen` (texts,), and compute the next logits."""
        self.used += 1
        self.position = self.position + 1
        output = self.model(
            chosen[:, None], attention_mask=self.mask[:, : self.used], position_ids=self.position,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.logits = output.logits[:, -1]

    def keep(self, texts: torch.Tensor) -> None:
        """Keep only `texts` (indices), in this order; one that is named several times is copied."""
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
