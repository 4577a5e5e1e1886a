"""A soft punishment of responses that come close to the limit of tokens."""

from __future__ import annotations

from qwq_rl.errors import UserError
from qwq_rl.verifiers.builtin.roles import count, placed, role_of, share
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import fault


@run_as("inline")
def overlong(*, max_tokens: int, buffer: int, most: float = 1.0) -> Verifier:
    """A verifier of role penalty: DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), times `most`.

    With n tokens: 0 up to `max_tokens - buffer`, then `(max_tokens - buffer - n) / buffer` down to -1 at `max_tokens`
    and beyond. `max_tokens` is the limit that responses are sampled with. As a score it is 1 plus that, as a gate 1
    before the buffer. A response without token ids is a fault. Raises UserError for a buffer that is no part of it.
    """
    count("max_tokens", max_tokens)
    if count("buffer", buffer) > max_tokens:
        raise UserError(f"`buffer` must be at most `max_tokens`, {max_tokens}, not {buffer}")
    share("most", most)
    free = max_tokens - buffer

    def verify(problem: Problem, response: Response) -> Verdict:
        tokens = len(response.token_ids)
        if not tokens:
            return fault("the response carries no token ids, so its length in tokens is not known")
        excess = min(1.0, max(0.0, (tokens - free) / buffer))
        where = f"beyond {free}, {max_tokens} is the limit" if excess else f"at most {free}"
        return placed(
            role_of(problem, "penalty"),
            1 - excess,
            passes=not excess,
            most=most,
            reason=f"{tokens} tokens, {where}",
            metrics={"tokens": float(tokens)},
        )

    verify.largest_penalty = most  # type: ignore[attr-defined]
    return verify
