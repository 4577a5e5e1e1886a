"""Trains a line for two steps under `accelerate launch`; the main process prints its world and what was learned."""

from __future__ import annotations

import json

import torch
from accelerate import Accelerator, PartialState


def main() -> None:
    PartialState(cpu=True)  # as trainers do: `use_cpu` in the file alone gives two lonely processes
    accelerator = Accelerator()
    plugin = accelerator.state.deepspeed_plugin
    if plugin:
        # What a trainer would fill in; clipping is off, as it is without DeepSpeed.
        sizes = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": accelerator.num_processes}
        plugin.deepspeed_config.update({**sizes, "gradient_clipping": 0.0})
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(2):
        # Each process has data of its own: only averaged gradients keep the weights equal.
        inputs = torch.full((1, 4), 1.0 + accelerator.process_index)
        loss = model(inputs).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        said = {
            "processes": accelerator.num_processes,
            "zero_stage": plugin.zero_stage if plugin else None,
            "weight": [round(value, 5) for value in weights["weight"].flatten().tolist()],
        }
        print("said " + json.dumps(said), flush=True)
    # Who leaves first closes connections that the other may still use, and the other aborts.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
