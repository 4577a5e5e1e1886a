"""The processes of a stage: checks of their number and sharding, and a watch that notices a lost process.

Each process writes a heartbeat to the store of the process group. Process 0 watches all others, and they watch process
0. A process of the same machine that ended is noticed within seconds; a process of another machine, or one that hangs,
after SILENCE. Then all processes end with a message that names it, even if they wait in a collective.
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
"""Seconds without a heartbeat after which a process counts as lost."""
PATIENCE = timedelta(hours=2)
"""How long processes wait in a collective for one that is alive, while it judges, evaluates or writes a checkpoint."""
_TICK = 1.0
_GRACE = 10.0
"""Seconds that a process has to end by itself after another one is lost."""
_LEFT = "left"


class ProcessLost(RunStateError):
    """Another process of this stage is lost. The same command continues the stage from its last checkpoint."""


def join() -> PartialState:
    """Join the process group. Raises UserError if FSDP was requested and there is no GPU."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu and _asked("ACCELERATE_USE_FSDP"):
        raise UserError(
            "FSDP was asked for, and there is no GPU: accelerate would train whole copies and say nothing. On CPUs use "
            "recipes/accelerate/cpu_ddp.yaml or cpu_zero3.yaml"
        )
    state = PartialState(cpu=not on_gpu, timeout=PATIENCE)
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        from deepspeed.comm import init_distributed

        # Without this, DeepSpeed assumes one process while ZeRO-3 loads the reference and the critic.
        init_distributed(dist_backend=state.backend, auto_mpi_discovery=False, verbose=False, timeout=PATIENCE)
    return state


def sharding_of(state: AcceleratorState) -> str:
    """Return how the weights in training are sharded: "copies", "zero1" to "zero3", or accelerate's name for it."""
    if state.distributed_type == DistributedType.DEEPSPEED:
        return f"zero{state.deepspeed_plugin.zero_stage}"
    kind = str(state.distributed_type.value)
    return "copies" if kind in ("NO", "MULTI_CPU", "MULTI_GPU") else kind.lower()


def check_sharding(state: AcceleratorState) -> None:
    """Raise UserError if DeepSpeed or FSDP was requested and accelerate does not use it."""
    sharding = sharding_of(state)
    for variable, prefix, name in (
        ("ACCELERATE_USE_DEEPSPEED", "zero", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "fsdp", "FSDP"),
    ):
        if _asked(variable) and not sharding.startswith(prefix):
            raise UserError(f"{name} was asked for, and what runs is {sharding}: see recipes/accelerate/")


def check_resume(checkpoint: Path, saved: dict[str, Any], state: AcceleratorState) -> None:
    """Raise UserError if these processes cannot resume from `checkpoint`; `saved` is the content of its COMPLETE."""
    saved_processes, processes = saved.get("processes"), state.num_processes
    saved_sharding, sharding = saved.get("sharding", "copies"), sharding_of(state)
    # Full copies fit any number of processes; shards fit only the same number with the same sharding.
    if saved_processes is None or (
        saved_sharding == sharding and (saved_processes == processes or sharding == "copies")
    ):
        return
    raise UserError(
        f"{checkpoint} was saved by {_world(saved_processes, saved_sharding)}, and {_world(processes, sharding)} "
        "cannot go on with it: sharded checkpoints fit the world that wrote them. "
        f"Start {_world(saved_processes, saved_sharding)} again; or begin anew in another run folder"
    )


def _world(processes: int, sharding: str) -> str:
    layout = "whole copies" if sharding == "copies" else sharding.upper().replace("ZERO", "ZeRO-")
    return f"{processes} process{'es' if processes > 1 else ''} with {layout}"


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


@contextlib.contextmanager
def watched(state: PartialState) -> Iterator[None]:
    """Watch the other processes inside this context. An error is raised as ProcessLost if another process is lost."""
    if state.num_processes == 1:
        yield
        return
    watch = _Watch(state.process_index, state.num_processes)
    succeeded = False
    try:
        yield
        succeeded = True
    except UserError:
        raise
    except Exception as error:
        # A collective may fail before the watch has noticed the lost process, so it gets a few ticks.
        lost = watch.verdict(wait=5 * _TICK)
        if lost is None:
            raise
        raise ProcessLost(lost) from error
    finally:
        watch.close(succeeded)


class _Watch:
    """The thread that writes this process's heartbeat and reads those of the others."""

    def __init__(self, rank: int, world: int) -> None:
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        self._store = store.clone()  # its own connection: the shared one is blocked while a collective waits
        self._rank, self._others = rank, list(range(1, world)) if rank == 0 else [0]
        self._last_heartbeats: dict[int, tuple[str, float]] = {}
        self._lost: str | None = None
        self._lost_known, self._closed = threading.Event(), threading.Event()
        self._write_heartbeat(0)
        torch.distributed.barrier()  # now every process has written a heartbeat, and reading one never waits
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        self._thread.start()

    def verdict(self, wait: float) -> str | None:
        """Return a message about the lost process, or None if none is known within `wait` seconds."""
        self._lost_known.wait(wait)
        return self._lost

    def close(self, well: bool) -> None:
        """Stop watching. If all went `well`, also write that this process left, so that it does not count as lost."""
        self._closed.set()
        self._thread.join()
        if not well:
            return
        with contextlib.suppress(RuntimeError):  # the store may be gone with the process that hosted it
            self._store.set(_key(self._rank), f"{_LEFT} {os.getpid()} {socket.gethostname()}")

    def _write_heartbeat(self, tick: int) -> None:
        self._store.set(_key(self._rank), f"{tick} {os.getpid()} {socket.gethostname()}")

    def _run(self) -> None:
        tick = 0
        while not self._closed.wait(_TICK):
            tick += 1
            try:
                self._write_heartbeat(tick)
                self._lost = next(filter(None, map(self._lost_message, self._others)), None)
            except RuntimeError as error:
                self._lost = f"the launcher at {os.environ.get('MASTER_ADDR')} is gone, and process 0 with it ({error})"
            if self._lost:
                self._lost_known.set()
                break
        if self._lost and not self._closed.wait(_GRACE):
            # The main thread waits in a collective that will never complete, so only os._exit ends the process.
            print(f"error: {self._lost}", file=sys.stderr, flush=True)
            os._exit(ProcessLost.exit_status)

    def _lost_message(self, rank: int) -> str | None:
        """Return a message if the process is lost, else None."""
        heartbeat = self._store.get(_key(rank)).decode()
        tick, pid, host = heartbeat.split(" ", 2)
        if tick == _LEFT:
            return None
        now = time.monotonic()
        # Only this process's clock is used: those of other machines may differ.
        if rank not in self._last_heartbeats or self._last_heartbeats[rank][0] != heartbeat:
            self._last_heartbeats[rank] = (heartbeat, now)
        silence = now - self._last_heartbeats[rank][1]
        ended = host == socket.gethostname() and not is_alive(int(pid))
        if not ended and silence <= SILENCE:
            return None
        how = "has ended" if ended else f"has given no sign of life for {silence:.0f} s"
        return (
            f"process {rank} (pid {pid} on {host}) {how}: killed, or out of memory, or its own message stands in the "
            "log. The same command goes on from the last whole checkpoint"
        )


def _key(rank: int) -> str:
    return f"qwq_rl/alive/{rank}"
