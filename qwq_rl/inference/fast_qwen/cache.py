"""The cache of keys and values in sampling. A prompt's are stored once for all texts that begin with it.

The keys and values of later tokens are stored text by text. Attention to a prompt is one matrix product for all its
texts together; attention to later tokens is many small products.
"""

from __future__ import annotations

import torch

_FIRST_TOKENS = 32
"""Number of tokens after the prompt that there is room for at first."""


class SharedCache:
    """The cache of all layers, written in place. At first there is one text per prompt; `keep` can copy texts."""

    def __init__(self, prompts: torch.Tensor, lengths: torch.Tensor) -> None:
        """`prompts`: keys and values of the layers in turn, (2 * layers, prompts, key heads, longest, head dimension).

        `lengths`, (prompts,): tokens of each prompt; what comes after them is padding.
        """
        self._prompts = prompts
        count, self._heads, longest = prompts.shape[1:4]
        self._owners = torch.arange(count, device=prompts.device)
        """Each text's prompt."""
        self._own = prompts.new_empty(len(prompts), count, self._heads, _FIRST_TOKENS, prompts.shape[-1])
        """The tokens after the prompts, text by text; shaped like `prompts`, with spare room for texts and tokens."""
        self._used = 0
        self._bias = prompts.new_zeros(count, self._heads, 1, longest)
        """What is added to the attention scores of a prompt: 0, and the lowest number where there is padding."""
        padding = torch.arange(longest, device=prompts.device) >= lengths[:, None]
        self._bias.masked_fill_(padding[:, None, None], torch.finfo(prompts.dtype).min)
        self._assign_seats()

    def grow(self) -> None:
        """Make room for one more token in every text."""
        self._make_room(self._owners.shape[0], self._used + 1)
        self._used += 1

    def attend(self, layer: int, turned: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """Each text's attention to its prompt and to its own tokens, (texts, query heads * head dimension).

        `turned` and `values` belong to the newest tokens, as `decoder.project` gives them; they are stored here.
        `scale` is multiplied into the queries.
        """
        texts = turned.shape[0]
        keys, own_values = self._own[2 * layer, :texts], self._own[2 * layer + 1, :texts]
        keys[:, :, self._used - 1] = turned[:, :, -1]
        own_values[:, :, self._used - 1] = values
        queries = turned.flatten(0, 1)[:, :-1].to(keys.dtype)
        if scale != 1.0:
            queries = queries * scale
        prompt_scores = self._times_prompts(queries, self._prompts[2 * layer].flatten(0, 1).transpose(1, 2), self._bias)
        own_scores = torch.bmm(queries, keys.flatten(0, 1)[:, : self._used].transpose(1, 2))
        # One softmax over the prompt and the text's own tokens: together they are what the text may see.
        weights = torch.softmax(torch.cat([prompt_scores, own_scores], -1), -1, dtype=torch.float32).to(keys.dtype)
        prompt_width = prompt_scores.shape[-1]
        from_prompts = self._times_prompts(
            weights[..., :prompt_width], self._prompts[2 * layer + 1].flatten(0, 1), None
        )
        return (
            torch.baddbmm(from_prompts, weights[..., prompt_width:], own_values.flatten(0, 1)[:, : self._used])
            .view(texts, -1)
            .to(values.dtype)
        )

    def _times_prompts(self, rows: torch.Tensor, matrices: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Multiply each of `rows`, (texts * key heads, queries, n), by the matrix of its prompt and key head."""
        seated = rows.index_select(0, self._row_of_seat).view(matrices.shape[0], -1, rows.shape[-1])
        product = torch.bmm(seated, matrices) if bias is None else torch.baddbmm(bias.flatten(0, 1), seated, matrices)
        return product.view(-1, rows.shape[1], product.shape[-1]).index_select(0, self._seat_of_row)

    def keep(self, texts: torch.Tensor) -> None:
        """Keep only `texts` (indices), in this order; one that is named several times is copied."""
        self._make_room(len(texts), self._used)
        _move(self._own[:, :, :, : self._used], texts)
        self._owners = self._owners[texts]
        # Drop the prompts of which no text is left.
        needed, self._owners = torch.unique(self._owners, return_inverse=True)
        if len(needed) < self._prompts.shape[1]:
            _move(self._prompts, needed)
            self._prompts, self._bias = self._prompts[:, : len(needed)], self._bias[needed]
        self._assign_seats()

    def _make_room(self, texts: int, tokens: int) -> None:
        """Make `_own` large enough. A size that is too small becomes twice what is needed, so copying is rare."""
        layers, rows, heads, capacity, dimension = self._own.shape
        if texts <= rows and tokens <= capacity:
            return
        shape = (layers, texts if texts <= rows else 2 * texts, heads, capacity if tokens <= capacity else 2 * tokens)
        larger = self._own.new_empty(*shape, dimension)
        copied = min(rows, shape[1])
        larger[:, :copied, :, : self._used] = self._own[:, :copied, :, : self._used]
        self._own = larger

    def _assign_seats(self) -> None:
        """Give every text a seat at its prompt.

        All prompts have the same number of seats, that of the prompt with most texts, so that one batched product
        serves them all.
        """
        # A text's seat is the number of texts before it that have the same prompt.
        seats = (self._owners[:, None] == self._owners).tril(-1).sum(1)
        prompts, width = self._prompts.shape[1], int(seats.max()) + 1
        heads = torch.arange(self._heads, device=seats.device)
        self._seat_of_row = ((self._owners[:, None] * self._heads + heads) * width + seats[:, None]).flatten()
        """For each (text, key head) its place among (prompts, key heads, seats)."""
        self._row_of_seat = seats.new_zeros(prompts * self._heads * width)
        """The reverse: which (text, key head) has a seat. An empty seat points to the first; its result is not used."""
        self._row_of_seat[self._seat_of_row] = torch.arange(len(self._seat_of_row), device=seats.device)


def _move(cache: torch.Tensor, sources: torch.Tensor) -> None:
    """Move the entries `sources` of `cache`, (layers, n, ...), to its start; those already in place are not copied."""
    changed = (sources != torch.arange(len(sources), device=sources.device)).nonzero()[:, 0]
    cache[:, changed] = cache[:, sources[changed]]
