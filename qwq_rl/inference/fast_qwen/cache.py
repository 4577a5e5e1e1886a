"""Keys and values of a batch of texts: a prompt's once for all texts that begin with it, later ones text by text.

Attention to the prompts is a few matrix products, each of all texts of a prompt, attention to later tokens many small
ones. A prompt's part is held, read and moved as often as there are prompts.
"""

from __future__ import annotations

import torch

_FIRST_TOKENS = 32
"""Room for so many after the prompt at first."""


class SharedCache:
    """The cache of all layers, written in place; a text begins as each of the prompts, and can part into several."""

    def __init__(self, prompts: torch.Tensor, lengths: torch.Tensor) -> None:
        """`prompts`: keys and values by turns, (2 * layers, prompts, key heads, longest, head dimension).

        `lengths`, (prompts,): what is behind is padding.
        """
        self._prompts = prompts
        count, self._heads, longest = prompts.shape[1:4]
        self._owners = torch.arange(count, device=prompts.device)
        """Each text's prompt."""
        self._own = prompts.new_empty(len(prompts), count, self._heads, _FIRST_TOKENS, prompts.shape[-1])
        """As `prompts`, with room for more texts and tokens than there are."""
        self._used = 0
        self._bias = prompts.new_zeros(count, self._heads, 1, longest)
        """What padding behind a prompt adds to scores."""
        padding = torch.arange(longest, device=prompts.device) >= lengths[:, None]
        self._bias.masked_fill_(padding[:, None, None], torch.finfo(prompts.dtype).min)
        self._seat()

    def grow(self) -> None:
        """Make place for another token in every text."""
        self._make_room(self._owners.shape[0], self._used + 1)
        self._used += 1

    def attend(self, layer: int, turned: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """Each text's attention to its prompt and to its own tokens, (texts, query heads * head dimension).

        `turned` and `values`: of the newest tokens, as `qwen_layer.project` gives them. `scale` is the queries'.
        """
        texts = turned.shape[0]
        keys, own_values = self._own[2 * layer, :texts], self._own[2 * layer + 1, :texts]
        keys[:, :, self._used - 1] = turned[:, :, -1]
        own_values[:, :, self._used - 1] = values
        queries = turned.flatten(0, 1)[:, :-1].to(keys.dtype)
        if scale != 1.0:
            queries = queries * scale
        before = self._to_prompts(queries, self._prompts[2 * layer].flatten(0, 1).transpose(1, 2), self._bias)
        since = torch.bmm(queries, keys.flatten(0, 1)[:, : self._used].transpose(1, 2))
        shares = torch.softmax(torch.cat([before, since], -1), -1, dtype=torch.float32).to(keys.dtype)
        split = before.shape[-1]
        seen = self._to_prompts(shares[..., :split], self._prompts[2 * layer + 1].flatten(0, 1), None)
        return (
            torch.baddbmm(seen, shares[..., split:], own_values.flatten(0, 1)[:, : self._used])
            .view(texts, -1)
            .to(values.dtype)
        )

    def _to_prompts(self, rows: torch.Tensor, matrices: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The product of each of `rows`, (texts * key heads, queries, n), with its prompt's of `matrices`."""
        seated = rows.index_select(0, self._into).view(matrices.shape[0], -1, rows.shape[-1])
        product = torch.bmm(seated, matrices) if bias is None else torch.baddbmm(bias.flatten(0, 1), seated, matrices)
        return product.view(-1, rows.shape[1], product.shape[-1]).index_select(0, self._back)

    def keep(self, texts: torch.Tensor) -> None:
        """Go on with these texts alone, in this order, and with one as often as it is named."""
        self._make_room(len(texts), self._used)
        _move(self._own[:, :, :, : self._used], texts)
        self._owners = self._owners[texts]
        # Prompts that no text begins with any more are left behind.
        needed, self._owners = torch.unique(self._owners, return_inverse=True)
        if len(needed) < self._prompts.shape[1]:
            _move(self._prompts, needed)
            self._prompts, self._bias = self._prompts[:, : len(needed)], self._bias[needed]
        self._seat()

    def _make_room(self, texts: int, tokens: int) -> None:
        """See that `_own` holds so many; what is too small is doubled, so that it is seldom copied."""
        layers, rows, heads, capacity, dimension = self._own.shape
        if texts <= rows and tokens <= capacity:
            return
        shape = (layers, texts if texts <= rows else 2 * texts, heads, capacity if tokens <= capacity else 2 * tokens)
        larger = self._own.new_empty(*shape, dimension)
        known = min(rows, shape[1])
        larger[:, :known, :, : self._used] = self._own[:, :known, :, : self._used]
        self._own = larger

    def _seat(self) -> None:
        """Give every text a seat at its prompt, of which all prompts have as many as the fullest one needs."""
        # As many as there are texts of the same prompt before it.
        seats = (self._owners[:, None] == self._owners).tril(-1).sum(1)
        prompts, width = self._prompts.shape[1], int(seats.max()) + 1
        heads = torch.arange(self._heads, device=seats.device)
        self._back = ((self._owners[:, None] * self._heads + heads) * width + seats[:, None]).flatten()
        """Where the heads of each text sit among (prompts, key heads, seats)."""
        self._into = seats.new_zeros(prompts * self._heads * width)
        """The reverse: which head of which text has a seat; an empty one has the first, for nothing."""
        self._into[self._back] = torch.arange(len(self._back), device=seats.device)


def _move(cache: torch.Tensor, sources: torch.Tensor) -> None:
    """Make `cache`, (layers, n, ...), begin with those of `sources`; only what changes its place is copied."""
    changed = (sources != torch.arange(len(sources), device=sources.device)).nonzero()[:, 0]
    cache[:, changed] = cache[:, sources[changed]]
