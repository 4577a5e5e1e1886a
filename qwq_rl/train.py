"""Train one stage: from its YAML file to a finished model folder.

    accelerate launch -m qwq_rl.train recipes/tiny/1_math_code.yaml [--run runs/NAME] [--a.b=c ...]

The numbered steps of `main` are the whole of it. A stage that was interrupted goes on from its newest whole checkpoint
by the same command; a finished one takes no further step.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwq_rl.config.check import check
from qwq_rl.config.recipe import difference, is_free, recipe_hash, resolved_yaml
from qwq_rl.config.stages import RewardModelRecipe, RlRecipe, Stage
from qwq_rl.errors import RunStateError, UserError
from qwq_rl.run_folder.checkpoints import (
    PARTIAL,
    cut_back,
    newest_complete,
    progress_of,
    to_disk,
    told_when_full,
    update_of,
)
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_json, write_json
from qwq_rl.run_folder.locks import hold
from qwq_rl.stages.provenance import collect

if TYPE_CHECKING:
    from accelerate import PartialState

    from qwq_rl.stages.context import StageContext


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage to its end; returns the exit status (0 done, 130 or 143 stopped by a signal after saving)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    recipe_path, run_path, overrides = _parse(argv)
    _quieten()
    # 1. The recipe. Every mistake is told at once, before the heavy imports: nobody waits for torch to learn of a typo.
    recipe = check(recipe_path, overrides)[recipe_path.stem]
    run = RunFolder(run_path or Path("runs") / recipe_path.resolve().parent.name)
    folder = run.stage(recipe_path.stem)
    main_process = int(os.environ.get("RANK", "0")) == 0
    if not main_process:
        # Of a finished stage the main process returns below; the others must not go and wait for it.
        if (read_json(folder.done) or {}).get("recipe_hash") == recipe_hash(recipe) and folder.final.is_dir():
            return 0
        with told_when_full(folder):
            return _train(recipe, recipe_path, run, folder, argv)
    # 2. The lock on the folder. A killed launcher can leave its trainer alive, and two trainers would mix their files.
    with told_when_full(folder), hold(folder.lock, f"the trainer of {folder.name}"):
        if _finished(folder, recipe, recipe_path):
            print(f"{folder.name} is finished already: {folder.final}")
            return 0
        return _train(recipe, recipe_path, run, folder, argv)


def _train(recipe: Stage, recipe_path: Path, run: RunFolder, folder: StageFolder, argv: list[str]) -> int:
    import datasets
    from transformers.utils import logging

    from qwq_rl.stages.distributed import join, watched

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    # 3. The processes. As many as were asked for must run, for a launcher can start fewer and say nothing; and one that
    #    dies must end the others, which would wait for it in a collective for ever.
    state = join()
    _check_world(state.num_processes)
    with watched(state):
        status = _train_in(state, recipe, recipe_path, run, folder, argv)
        # The launcher ends all as soon as one has left with a status of its own.
        state.wait_for_everyone()
    return status


def _train_in(
    state: PartialState, recipe: Stage, recipe_path: Path, run: RunFolder, folder: StageFolder, argv: list[str]
) -> int:
    from transformers import PrinterCallback

    from qwq_rl.stages.callbacks import StopRequest
    from qwq_rl.stages.context import StageContext
    from qwq_rl.stages.distributed import check_resume, check_sharding
    from qwq_rl.stages.lineage import ContractWriter, agreed_contract, tokenizer_items
    from qwq_rl.training.clock import Clock

    # 4. The checkpoint to go on from. It is refused if tokenizer, template, base model or verifiers have changed since:
    #    what was learned before would not fit what is learned now.
    resume = newest_complete(folder)
    progress = progress_of(resume) if resume else {}
    clock = Clock(progress.get("cpu_seconds", 0.0), progress.get("wall_seconds", 0.0))
    stop = StopRequest()
    stop.listen()
    context = StageContext(run, folder, recipe_path.parent, state.num_processes, resume, clock, stop)
    with clock.paused():  # setting up is no training time, and a resume must not count it twice
        contract = agreed_contract(recipe, context) if state.is_main_process else {}
    if state.is_main_process:
        # What was recorded after the checkpoint will be made again, and must not stand there twice.
        cut_back(folder)
        # Written beside and moved into place: a kill leaves the old file or the new one, never half of one.
        draft = folder.resolved.with_suffix(".partial")
        draft.write_text(resolved_yaml(recipe))
        draft.replace(folder.resolved)
    state.wait_for_everyone()
    # 5. Model, rows, verifiers, trainer: `build_trainer`, which differs by kind of stage.
    with clock.paused():
        trainer = build_trainer(recipe, context)
    check_sharding(trainer.accelerator.state)
    if resume:
        check_resume(resume, progress, trainer.accelerator.state)
    if state.is_main_process:
        # Written now, so that a stage that is killed says what it was made from. The `trl` block may have set tokens.
        made_from = contract | tokenizer_items(trainer.processing_class)
        write_json(
            folder.provenance,
            collect(folder.name, recipe_path, recipe, state.num_processes, ["qwq_rl.train", *argv], made_from),
        )
    # Before all other callbacks: the recorder's declares the checkpoint whole, and the contract is a part of it.
    trainer.callback_handler.callbacks.insert(0, ContractWriter(contract))
    trainer.remove_callback(PrinterCallback)  # its lines are in metrics.jsonl
    # 6. The updates: `PolicyTrainer.training_step` for an rl stage, TRL's own trainers for the others.
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if stop.asked is not None and trainer.state.global_step < recipe.steps:
        print(f"{folder.name} stopped at update {trainer.state.global_step}, saved: the same command goes on")
        return 128 + int(stop.asked)
    # 7. The result, and last of all the mark that the stage is done: whoever finds the mark can rely on the result.
    _save_final(trainer, folder, contract, state.is_main_process)
    if state.is_main_process:
        write_json(
            folder.done,
            {
                "update": trainer.state.global_step,
                "cpu_seconds": clock.cpu_seconds(),
                "wall_seconds": clock.wall_seconds(),
                "checkpoint": f"{folder.name}/checkpoints/final",
                "recipe_hash": recipe_hash(recipe),
            },
        )
    return 0


def _parse(argv: list[str]) -> tuple[Path, Path | None, list[str]]:
    parser = argparse.ArgumentParser(
        prog="qwq_rl.train",
        description="Train one stage of a recipe.",
        epilog="Any field of the recipe can be set: --steps=20 --update.lr=5e-4 --data.0.weight=2",
    )
    parser.add_argument("recipe", type=Path, help="the stage's YAML file")
    parser.add_argument("--run", type=Path, help="the run folder (default: runs/NAME of the recipe's folder)")
    known, overrides = parser.parse_known_args(argv)
    return known.recipe, known.run, overrides


def _quieten() -> None:
    """Warnings of the libraries must not bury the run's own output."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


def _finished(folder: StageFolder, recipe: Stage, recipe_path: Path) -> bool:
    """Whether the stage is done with just this recipe; with fewer steps than asked for, or other limits, it goes on.

    Raises RunStateError where it was trained, in whole or in part, by another recipe.
    """
    done, begun = read_json(folder.done), newest_complete(folder)
    if done is not None and not folder.final.is_dir():  # somebody removed the result: make it again
        folder.done.unlink()
        done = None
    if done is not None and done["recipe_hash"] == recipe_hash(recipe):
        return True
    if done is None and begun is None:
        return False
    changed = difference(folder.resolved.read_text(), resolved_yaml(recipe))
    but_for_steps = "\n".join(line for line in changed.splitlines() if not line.startswith("steps:"))
    if is_free(but_for_steps) and begun and recipe.steps >= update_of(begun):
        folder.done.unlink(missing_ok=True)
        return False
    raise RunStateError(
        f"{folder.path} was {'begun' if done is None else 'finished'} with another recipe:\n{changed}\n"
        f"Undo the change; or train it anew: `qwq-rl run {recipe_path.parent} --from {folder.name}`, or remove "
        f"{folder.path}; or use another run folder"
    )


def _check_world(processes: int) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing."""
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = int(os.environ.get("QWQ_RL_PROCESSES", asked))
    if wanted != processes:
        raise UserError(
            f"{wanted} processes were asked for and {processes} run. On CPUs accelerate needs "
            "`distributed_type: MULTI_GPU` with `use_cpu: true` (recipes/accelerate/)"
        )


def build_trainer(recipe: Stage, context: StageContext) -> Any:
    """TRL's trainer of the recipe's kind, with our record of it; ready for `train()`."""
    if isinstance(recipe, RewardModelRecipe):
        from qwq_rl.stages.supervised import build_reward_model

        return build_reward_model(recipe, context)
    from qwq_rl.stages.evaluator import TrainingEvaluator

    evaluator = TrainingEvaluator(recipe, context)
    if isinstance(recipe, RlRecipe):
        from qwq_rl.stages.rl import build_rl

        evaluator.trainer = build_rl(recipe, context, evaluator)
    else:
        from qwq_rl.stages.supervised import build_sft

        evaluator.trainer = build_sft(recipe, context, evaluator)
    return evaluator.trainer


def _save_final(trainer: Any, folder: StageFolder, contract: Mapping[str, Any], main_process: bool) -> None:
    """Write the Hugging Face folder under another name first, so that `final` is whole or absent."""
    from accelerate.utils import is_peft_model

    from qwq_rl.stages.lineage import carry_to_result

    draft = folder.checkpoints / PARTIAL
    if is_peft_model(trainer.accelerator.unwrap_model(trainer.model)):
        from qwq_rl.stages.lora import save_merged

        save_merged(trainer, draft)
    else:
        trainer.save_model(str(draft))
    if main_process:
        trainer.processing_class.save_pretrained(str(draft))
        (draft / "training_args.bin").unlink(missing_ok=True)
        carry_to_result(contract, draft)
        shutil.rmtree(folder.final, ignore_errors=True)
        for path in (*draft.iterdir(), draft):
            to_disk(path)  # the mark that the stage is done must not outlive its result in a loss of power
        draft.rename(folder.final)
        to_disk(folder.checkpoints)


def run_as_program() -> int:
    """`main`, with a user's mistake shown as one message."""
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(run_as_program())
