"""The processes of a stage: as many as were asked for, sharded as was asked for, and none of them lost for long.

Every process tells the others, through the store that they met at, that it lives. Process 0 looks after all of them,
they look after process 0. A process of this machine that ended is missed within seconds, one of another machine, or
one that stands still, after SILENCE; then all end with a message that names it, even if they wait in a collective.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from qwq_rl.errors import RunStateError, UserError
from qwq_rl.run_folder.locks import is_alive

SILENCE = 60.0
"""Seconds without a sign of life after which a process counts as lost."""
PATIENCE = timedelta(hours=2)
"""How long processes wait for one that lives: as it judges answers, evaluates, or writes a checkpoint."""
_TICK = 1.0
_GRACE = 10.0
"""Seconds that a process has to end by itself once another is lost."""
_LEFT = "left"


class ProcessLost(RunStateError):
    """Another process of this stage is gone; the stage goes on from its last checkpoint by the same command."""


def join() -> PartialState:
    """Meet the other processes. Raises UserError where FSDP was asked for and there is no GPU."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu and _asked("ACCELERATE_USE_FSDP"):
        raise UserError(
            "FSDP was asked for, and there is no GPU: accelerate would train whole copies and say nothing. On CPUs use "
            "recipes/accelerate/cpu_ddp.yaml or cpu_zero3.yaml"
        )
    state = PartialState(cpu=not on_gpu, timeout=PATIENCE)
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        from deepspeed.comm import init_distributed

        # Else DeepSpeed takes the world for one process while ZeRO-3 loads the reference and the critic.
        init_distributed(dist_backend=state.backend, auto_mpi_discovery=False, verbose=False, timeout=PATIENCE)
    return state


def sharding_of(state: AcceleratorState) -> str:
    """How the weights in training lie in the processes: "copies", "zero1" to "zero3", or accelerate's name for it."""
    if state.distributed_type == DistributedType.DEEPSPEED:
        return f"zero{state.deepspeed_plugin.zero_stage}"
    kind = str(state.distributed_type.value)
    return "copies" if kind in ("NO", "MULTI_CPU", "MULTI_GPU") else kind.lower()


def check_sharding(state: AcceleratorState) -> None:
    """Raise UserError where DeepSpeed or FSDP was asked for and accelerate made copies."""
    found = sharding_of(state)
    for variable, start, name in (
        ("ACCELERATE_USE_DEEPSPEED", "zero", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "fsdp", "FSDP"),
    ):
        if _asked(variable) and not found.startswith(start):
            raise UserError(f"{name} was asked for, and what runs is {found}: see recipes/accelerate/")


def check_resume(checkpoint: Path, saved: dict[str, Any], state: AcceleratorState) -> None:
    """Raise UserError where `checkpoint`, whose COMPLETE says `saved`, cannot be taken up by this world."""
    then, now = saved.get("processes"), state.num_processes
    sharded, here = saved.get("sharding", "copies"), sharding_of(state)
    if then is None or (sharded == here and (then == now or here == "copies")):
        return
    raise UserError(
        f"{checkpoint} was saved by {_world(then, sharded)}, and {_world(now, here)} cannot go on with it: sharded "
        f"checkpoints fit the world that wrote them. Start {_world(then, sharded)} again; or begin anew in another run "
        "folder"
    )


def _world(processes: int, sharding: str) -> str:
    held = "whole copies" if sharding == "copies" else sharding.upper().replace("ZERO", "ZeRO-")
    return f"{processes} process{'es' if processes > 1 else ''} with {held}"


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


@contextlib.contextmanager
def watched(state: PartialState) -> Iterator[None]:
    """Within, the processes look after each other. What fails because another is lost is raised as ProcessLost."""
    if state.num_processes == 1:
        yield
        return
    watch = _Watch(state.process_index, state.num_processes)
    well = False
    try:
        yield
        well = True
    except UserError:
        raise
    except Exception as error:
        lost = watch.verdict(wait=5 * _TICK)
        if lost is None:
            raise
        raise ProcessLost(lost) from error
    finally:
        watch.close(well)


class _Watch:
    """The thread that gives signs of life and looks for those of others."""

    def __init__(self, rank: int, world: int) -> None:
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        self._store = store.clone()  # a connection of its own: the others block for as long as a collective does
        self._rank, self._others = rank, list(range(1, world)) if rank == 0 else [0]
        self._heard: dict[int, tuple[str, float]] = {}
        self._lost: str | None = None
        self._known, self._ended = threading.Event(), threading.Event()
        self._say(0)
        torch.distributed.barrier()  # from here on everybody has said something
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        self._thread.start()

    def verdict(self, wait: float) -> str | None:
        """Who is lost, in words, if that is known within `wait` seconds."""
        self._known.wait(wait)
        return self._lost

    def close(self, well: bool) -> None:
        """Look no more; where all went well, say goodbye too, so that nobody misses this process."""
        self._ended.set()
        self._thread.join()
        if not well:
            return
        with contextlib.suppress(RuntimeError):  # the store may be gone, with whoever kept it
            self._store.set(_key(self._rank), f"{_LEFT} {os.getpid()} {socket.gethostname()}")

    def _say(self, tick: int) -> None:
        self._store.set(_key(self._rank), f"{tick} {os.getpid()} {socket.gethostname()}")

    def _run(self) -> None:
        tick = 0
        while not self._ended.wait(_TICK):
            tick += 1
            try:
                self._say(tick)
                self._lost = next(filter(None, map(self._missing, self._others)), None)
            except RuntimeError as error:
                self._lost = f"the launcher at {os.environ.get('MASTER_ADDR')} is gone, and process 0 with it ({error})"
            if self._lost:
                self._known.set()
                break
        if self._lost and not self._ended.wait(_GRACE):
            # The main thread waits in a collective that nobody will complete.
            print(f"error: {self._lost}", file=sys.stderr, flush=True)
            os._exit(ProcessLost.exit_status)

    def _missing(self, rank: int) -> str | None:
        said = self._store.get(_key(rank)).decode()
        tick, pid, host = said.split(" ", 2)
        if tick == _LEFT:
            return None
        now = time.monotonic()
        if rank not in self._heard or self._heard[rank][0] != said:
            self._heard[rank] = (said, now)
        silent = now - self._heard[rank][1]
        ended = host == socket.gethostname() and not is_alive(int(pid))
        if not ended and silent <= SILENCE:
            return None
        how = "has ended" if ended else f"has given no sign of life for {silent:.0f} s"
        return (
            f"process {rank} (pid {pid} on {host}) {how}: killed, or out of memory, or its own message stands in the "
            "log. The same command goes on from the last whole checkpoint"
        )


def _key(rank: int) -> str:
    return f"qwq_rl/alive/{rank}"
