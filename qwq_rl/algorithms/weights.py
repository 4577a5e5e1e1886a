"""How much each row counts, fixed before the update, so that its loss does not depend on how it is cut up."""

from __future__ import annotations

from typing import Literal

import torch

Kind = Literal["sequence_mean", "sequence_sum", "token_mean", "constant"]
"""A mean over rows of each row's mean over tokens, the same of its sum, one mean over all tokens, a fixed divisor."""


def row_weights(
    lengths: torch.Tensor,
    domains: torch.Tensor,
    domain_weights: torch.Tensor,
    kind: Kind,
    constant: float | None = None,
) -> torch.Tensor:
    """w (N,), float32, so that the loss of an update is sum over rows i of w_i * sum over tokens t of mask_it loss_it.

    All N rows of the update on all processes are here, those without an advantage too, since they count in the
    denominators: `lengths` (N,) tokens that the mask leaves in, `domains` (N,) integers that index `domain_weights`
    (D,). Micro-batches add their parts; where gradients are averaged over processes, multiply by their number.

    With a weight of 1 for all, N rows in all and L tokens in the domain d of row i, of which N_d rows:

    - "sequence_mean", 1 / (N length_i): GRPO, GSPO, SAPO.
    - "sequence_sum", 1 / N: LUSPO.
    - "token_mean", (N_d / N) / L_d: DAPO, CISPO, BNPO, VESPO. With one domain that is 1 / L; with several each is
      divided by its own tokens and counts by its share of the rows, so that a domain of long responses does not
      outweigh one of short ones.
    - "constant", 1 / `constant`: Dr. GRPO with N times the longest allowed response (arXiv 2503.20783).

    A domain's weight multiplies that. A row without a token gets 0. Raises ValueError for an unknown kind, a missing
    or unasked `constant`, one that is not positive, and a domain without a weight.
    """
    if (kind == "constant") != (constant is not None):
        raise ValueError(
            f"kind {kind!r} with constant {constant!r}: a constant belongs to kind 'constant', and only there"
        )
    if constant is not None and not constant > 0:
        raise ValueError(f"the constant is {constant}; it must be positive")
    if lengths.shape != domains.shape or (len(domains) and int(domains.max()) >= len(domain_weights)):
        raise ValueError(f"{len(lengths)} lengths, {len(domains)} domains, {len(domain_weights)} weights do not match")
    rows, exact = len(lengths), lengths.double()
    if kind == "sequence_mean":
        share = 1 / (rows * exact.clamp(min=1))
    elif kind == "sequence_sum":
        share = torch.full_like(exact, 1 / max(rows, 1))
    elif kind == "token_mean":
        size = len(domain_weights)
        tokens = exact.new_zeros(size).index_add(0, domains, exact).clamp(min=1)
        share = (domains.bincount(minlength=size) / max(rows, 1) / tokens)[domains]
    elif constant is not None:
        share = torch.full_like(exact, 1 / constant)
    else:
        raise ValueError(f"unknown kind {kind!r}; known are sequence_mean, sequence_sum, token_mean, constant")
    return torch.where(lengths > 0, share * domain_weights.double()[domains], 0.0).float()
