"""The algorithms by name. Each is one row of `ALGORITHMS`: its parts, and the paper it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qwq_rl.algorithms.advantages import Baseline, Scale
from qwq_rl.algorithms.losses import RowWeighting, cispo, clipped, sapo, vespo
from qwq_rl.algorithms.ratios import Level


@dataclass(frozen=True)
class Algorithm:
    """The parts of one algorithm. Everything else in an update is the same for all of them."""

    loss: Callable[..., torch.Tensor]
    """The loss of each token, a function of `losses`."""
    level: Level
    """Whether the ratio of two policies is per token or per response."""
    weights: RowWeighting
    """The weight of each row in the sum of the losses."""
    baseline: Baseline | None
    """What is subtracted from the reward; None where a critic gives the advantages (`gae`)."""
    scale: Scale | None
    """What the difference is divided by; None where a critic gives the advantages."""


ALGORITHMS: Mapping[str, Algorithm] = {
    # DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    "grpo": Algorithm(clipped, "token", "sequence_mean", "group", "group"),
    # Understanding R1-Zero-Like Training, arXiv 2503.20783: both divisions, by deviation and by length, are biased.
    "dr_grpo": Algorithm(clipped, "token", "constant", "group", "none"),
    # arXiv 2503.14476, equations 8 and 9.
    "dapo": Algorithm(clipped, "token", "token_mean", "group", "group"),
    # Advantages as in GRPO. TRL uses the name for another normaliser of the loss.
    "bnpo": Algorithm(clipped, "token", "token_mean", "group", "group"),
    # arXiv 2507.18071, equations 5 and 6.
    "gspo": Algorithm(clipped, "sequence", "sequence_mean", "group", "group"),
    # arXiv 2602.05261: GSPO without its length bias.
    "luspo": Algorithm(clipped, "sequence", "sequence_sum", "group", "group"),
    # MiniMax-M1, arXiv 2506.13585, section 3.1.
    "cispo": Algorithm(cispo, "token", "token_mean", "group", "group"),
    # arXiv 2511.20347.
    "sapo": Algorithm(sapo, "token", "sequence_mean", "group", "group"),
    # arXiv 2602.10693, in TRL's setting.
    "vespo": Algorithm(vespo, "token", "token_mean", "group", "group"),
    # Back to Basics, arXiv 2402.14740, and Kool et al. 2019.
    "rloo": Algorithm(clipped, "joint", "sequence_mean", "leave_one_out", "none"),
    # REINFORCE++, arXiv 2501.03262.
    "reinforce_pp": Algorithm(clipped, "token", "token_mean", "none", "domain"),
    # The same paper, "w/ Baseline".
    "reinforce_pp_baseline": Algorithm(clipped, "token", "token_mean", "group", "domain"),
    # arXiv 1707.06347, equation 7, with a critic's advantages (GAE, arXiv 1506.02438).
    "ppo": Algorithm(clipped, "token", "token_mean", None, None),
}
"""The recipe's `algorithm` -> its parts."""
