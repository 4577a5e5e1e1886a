from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from qwq_rl.data.tiny.model import build_model, build_tokenizer
from qwq_rl.inference.engines import unsharded
from qwq_rl.inference.local import generate
from qwq_rl.inference.sampler import Completion

PROMPTS = [[5, 6, 7], [9, 8]]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sampled(model: torch.nn.Module) -> list[list[Completion]]:
    return generate(
        model, PROMPTS, samples=2, max_tokens=6, temperature=1.0, eos_token_id=1, pad_token_id=0, seed=3, fused=True
    )


@pytest.mark.usefixtures("group")
def test_what_fsdp_has_sharded_samples_like_the_whole_model_and_trains_on() -> None:
    model = build_model(build_tokenizer(), seed=1)
    expected = sampled(model)
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    with unsharded(model):
        assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
        found = sampled(model)

    for one, other in zip(chain(*expected), chain(*found), strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    model(input_ids=torch.tensor(PROMPTS[:1])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
