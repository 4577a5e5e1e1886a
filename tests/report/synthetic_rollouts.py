"""Made-up rollouts: test data for the page, never what a model said."""

from __future__ import annotations

import random
from statistics import mean, pstdev
from typing import Any

Json = dict[str, Any]
HOSTILE = (
    "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> & <b>bold</b>"
)
SAMPLES = 8


def group_of(stage: str, domain: str, family: str, rate: float, update: int, group: int) -> list[Json]:
    """Eight rollouts of one prompt; `rate` of them pass, a few are terse, cut off, or could not be judged."""
    draw = random.Random(f"{stage}/{update}/{group}")
    a, b, c = (draw.randrange(5) for _ in range(3))
    members = [
        one_of(domain, family, draw.random() < rate, update, group, sample, (a, b, c)) for sample in range(SAMPLES)
    ]
    known = [member["reward"] for member in members if member["reward"] is not None]
    spread = pstdev(known) or 1.0
    for member in members:
        judged = member["reward"] is not None
        member["advantage"] = round((member["reward"] - mean(known)) / spread, 3) if judged else 0.0
        member["preference"] = round(draw.random(), 3) if stage == "2_general" else None
    return members


def said(domain: str, passed: bool, terse: bool, numbers: tuple[int, int, int]) -> tuple[str, str, str]:
    """A question, a reasoning and an answer."""
    a, b, c = numbers
    first, answer = (a + b) % 5, (a + b) * c % 5
    shown = answer if passed else (answer + 1) % 5
    work = {
        "math": f"{a} + {b} = {first} , {first} * {c} = {shown}",
        "code": f"first + {a} , then * {b}",
        "general": "a short greeting",
    }
    final = {
        "math": f"\\boxed{{{shown}}}",
        "code": f"```python\ndef f(x):\n  return (x + {a}) * {b if passed else b + 1}\n```",
        "general": "HELLO ANN !" if passed else "hello Ann !",
    }
    question = {
        "math": f"( {a} + {b} ) * {c} mod 5 = ?",
        "code": f"write f(x): add {a}, then times {b}",
        "general": "greet Ann in upper case",
    }
    return question[domain], "" if terse else work[domain], final[domain]


def one_of(
    domain: str, family: str, passed: bool, update: int, group: int, sample: int, numbers: tuple[int, int, int]
) -> Json:
    question, reasoning, final = said(domain, passed, not passed and sample == 5, numbers)
    cut_off, fault = not passed and sample == 6, update % 7 == 3 and group == 1 and sample == 2
    if (update, group, sample) == (2, 0, 1):
        final = HOSTILE
    text = f"{reasoning} , again {reasoning}" if cut_off else f"{reasoning}\n</think>\n{final}<|im_end|>"
    status = "fault" if fault else "correct" if passed else "wrong"
    reason = {"fault": "the sandbox could not start", "correct": "equals the reference", "wrong": "not the reference"}
    verdict: Json = {
        "score": None if fault else float(passed),
        "status": status,
        "reason": reason[status],
        "answer": final,
        "metrics": {},
        "seconds": 0.0,
    }
    segment = {"role": "model", "text": text, "token_ids": [1] * 18, "loss_mask": [1] * 18, "logprobs": None}
    return {
        "id": f"u{update}-g{group}-s{sample}",
        "row": f"tiny-{domain}-{family}-{update * 16 + group:06d}",
        "domain": domain,
        "family": family,
        "group": group,
        "sample": sample,
        "update": update,
        "prompt": f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "segments": [{**segment, "policy_version": update - 1}],
        "finish": "length" if cut_off else "stop",
        "gates": dict.fromkeys(("think_closed", "finished", "answered"), not cut_off),
        "verdicts": {} if family == "open" else {{"general": "constraints"}.get(domain, domain): verdict},
        "preference": None,
        "score": None if fault or family == "open" else float(passed),
        "reward": None if fault else float(passed and not cut_off),
        "advantage": 0.0,
    }
