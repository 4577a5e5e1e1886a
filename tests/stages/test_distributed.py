"""What a stage says of the world it finds itself in; that it trains alike in all of them: training/test_distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from qwq_rl.errors import UserError
from qwq_rl.stages.distributed import check_resume, check_sharding, join, sharding_of

CHECKPOINT = Path("runs/one/1_math_code/checkpoints/checkpoint-4")


@pytest.fixture
def alone() -> AcceleratorState:
    """The state of a process that is the only one."""
    return Accelerator(cpu=True).state


def test_one_process_holds_a_copy(alone: AcceleratorState) -> None:
    assert sharding_of(alone) == "copies"
    check_sharding(alone)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is FSDP")
def test_fsdp_is_refused_where_it_would_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")

    with pytest.raises(UserError, match=r"FSDP was asked for, and there is no GPU: .*cpu_zero3\.yaml"):
        join()


@pytest.mark.parametrize(("variable", "name"), [("DEEPSPEED", "DeepSpeed"), ("FSDP", "FSDP")])
def test_copies_in_place_of_what_was_asked_for_are_refused(
    alone: AcceleratorState, monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")

    with pytest.raises(UserError, match=f"{name} was asked for, and what runs is copies"):
        check_sharding(alone)


@pytest.mark.parametrize(
    "saved", [{}, {"processes": 1, "sharding": "copies"}, {"processes": 8, "sharding": "copies"}], ids=str
)
def test_copies_are_taken_up_by_any_number_of_processes(alone: AcceleratorState, saved: dict[str, Any]) -> None:
    check_resume(CHECKPOINT, saved, alone)


@pytest.mark.parametrize(("processes", "words"), [(1, "1 process with ZeRO-3"), (8, "8 processes with ZeRO-3")])
def test_what_was_sharded_is_not_taken_up_by_copies(alone: AcceleratorState, processes: int, words: str) -> None:
    with pytest.raises(UserError, match=f"was saved by {words}, and 1 process with whole copies cannot go on") as said:
        check_resume(CHECKPOINT, {"processes": processes, "sharding": "zero3"}, alone)

    assert str(CHECKPOINT) in str(said.value)
    assert f"Start {words} again" in str(said.value)
