"""One process of a critic's fit: critic_rank.py POLICY OUT STAGE; RANK, WORLD_SIZE and MASTER_* as torchrun sets.

STAGE is DeepSpeed's ZeRO stage, or "none" for copies. Fits two rounds, the first process holding most of the samples;
saves between them; then a second critic takes up the save and fits the second round too. Writes OUT/rank-R.json.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from critic_cases import PLAN, returns_of, samples
from transformers.integrations import HfDeepSpeedConfig

from qwq_rl.training.critic import Critic, build_critic_model

TRACES = 22
MINE = {1: [slice(0, 22)], 2: [slice(0, 15), slice(15, 22)]}


def accelerator_for(stage: str) -> Accelerator:
    if stage == "none":
        return Accelerator(cpu=True)
    config = {"zero_optimization": {"stage": int(stage)}, "gradient_accumulation_steps": 1}
    plugin = DeepSpeedPlugin(hf_ds_config=config | {"train_micro_batch_size_per_gpu": 1}, zero3_init_flag=stage == "3")
    # With cpu=True accelerate ignores the plugin; without either it knows one process only.
    PartialState(cpu=True)
    return Accelerator(deepspeed_plugin=plugin)


def main() -> None:
    policy, out, stage = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    accelerator = accelerator_for(stage)
    kept = HfDeepSpeedConfig(accelerator.state.deepspeed_plugin.deepspeed_config) if stage == "3" else None
    rank, world = accelerator.process_index, accelerator.num_processes
    plan = dataclasses.replace(PLAN, tokens=60, clip=0.3)
    first, second = (Critic(build_critic_model(policy), plan, accelerator) for _ in range(2))
    rounds = [samples(TRACES, seed)[MINE[world][rank]] for seed in (0, 1)]
    figures = [dataclasses.asdict(fit(first, rounds[0], 0))]
    first.save(out / "critic")
    figures.append(dataclasses.asdict(fit(first, rounds[1], 1)))
    accelerator.wait_for_everyone()
    second.load(out / "critic")
    resumed = dataclasses.asdict(fit(second, rounds[1], 1))
    values = [line.tolist() for line in first.values(rounds[0])]
    again = [line.tolist() for line in second.values(rounds[0])]
    found = {"world": world, "figures": figures, "resumed": resumed, "values": values, "again": again}
    found["kind"] = accelerator.distributed_type.value
    del kept  # transformers looks for it while models load
    (out / f"rank-{rank}.json").write_text(json.dumps(found))
    accelerator.end_training()


def fit(critic: Critic, mine: list, seed: int):  # type: ignore[no-untyped-def, type-arg]
    return critic.fit(mine, critic.values(mine), returns_of(mine), seed)


if __name__ == "__main__":
    main()
