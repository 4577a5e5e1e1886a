"""Evaluates the model while a stage trains."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from copy import copy
from typing import Any

from accelerate.utils import gather_object

from qwq_rl.config.blocks import Evaluate
from qwq_rl.config.stages import RlRecipe, SftRecipe
from qwq_rl.data.row import Row
from qwq_rl.data.sources import load_rows
from qwq_rl.evals.estimates import PromptRecord, evaluation_line
from qwq_rl.evals.evaluate import evaluate_model, named_verifiers, require_verifiers
from qwq_rl.stages.callbacks import Line
from qwq_rl.stages.context import StageContext


class TrainingEvaluator:
    """Evaluates the model in training on the sets that the recipe names. Set `trainer` before the first call."""

    trainer: Any

    def __init__(self, recipe: RlRecipe | SftRecipe, context: StageContext) -> None:
        self._context = context
        self._max_tokens = recipe.rollout.max_tokens if isinstance(recipe, RlRecipe) else recipe.max_length
        self._sets = {name: _limited(load_rows(name), recipe.evaluate.limit) for name in recipe.evaluate.sets}
        # Evaluation knows the verifier names of all recipes of the run, not only of this stage.
        recipes = [context.folder.resolved, *sorted(context.recipe_folder.glob("*.yaml"))]
        self._verifiers = named_verifiers(recipes)
        require_verifiers((row for rows in self._sets.values() for row in rows), self._verifiers)

    def __call__(self, evaluate: Evaluate, update: int) -> list[Line]:
        """Return one line for each set. All processes must call this together; each evaluates its share of the rows."""
        lines = []
        for name, rows in self._sets.items():
            records = self._records(rows, evaluate.samples)
            line = evaluation_line(
                records,
                update=update,
                stage=self._context.folder.name,
                data_set=name,
                time=time.time(),
                cpu_seconds=self._context.clock.cpu_seconds(),
            )
            self._track(line)
            lines.append(line)
        return lines

    def _records(self, rows: Sequence[Row], samples: int) -> list[PromptRecord]:
        """Return the records of all rows, in order."""
        from qwq_rl.inference.engines import whole_model

        rank, world = self.trainer.accelerator.process_index, self.trainer.accelerator.num_processes
        own_rows, records = rows[rank::world], list[PromptRecord]()
        # Gathering the whole model is collective: a process without rows takes part too.
        with whole_model(self.trainer) as model:
            if own_rows:
                records = evaluate_model(
                    model,
                    self.trainer.processing_class,
                    own_rows,
                    samples=samples,
                    max_tokens=self._max_tokens,
                    greedy=False,
                    seed=0,
                    verifiers=self._verifiers,
                )
        parts: list[list[PromptRecord]] = gather_object([records])
        return [parts[index % world][index // world] for index in range(len(rows))]

    def _track(self, line: Line) -> None:
        """Send pass@1 by domain to the trackers. The recorder ignores it: it only writes logs that have a loss."""
        trainer = self.trainer
        figures = {
            f"{line['set']}/{domain}/pass@1": score["sampled"]["mean"]
            for domain, score in line["domains"].items()
            if score["sampled"] is not None
        }
        control = copy(trainer.control)  # a copy: on_log clears should_log, and the update itself is still to be logged
        trainer.callback_handler.on_log(trainer.args, trainer.state, control, figures)


def _limited(rows: list[Row], limit: int) -> list[Row]:
    """Return the first `limit` rows of each domain, or all rows if `limit` is 0."""
    counts: Counter[str] = Counter()
    kept = []
    for row in rows:
        counts[row["domain"]] += 1
        if limit == 0 or counts[row["domain"]] <= limit:
            kept.append(row)
    return kept
