"""Builds the trainer of an `rl` stage (`qwq_rl.training.policy_trainer`) from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig

from qwq_rl.algorithms.losses import Clip, cispo, clipped
from qwq_rl.algorithms.named import ALGORITHMS
from qwq_rl.audit.before_training import audit_stage
from qwq_rl.config.blocks import Correction
from qwq_rl.config.stages import RlRecipe, by_another
from qwq_rl.data.order import mix
from qwq_rl.data.prompt_source import PromptSource
from qwq_rl.inference.engines import batching_sampler, check_vllm, own_sampler, vllm_sampler
from qwq_rl.inference.fast_qwen.training_head import shares_prompts, use_compact_head
from qwq_rl.inference.sampler import Sampler
from qwq_rl.inference.vllm_http import ServedSampler
from qwq_rl.rewards.reward_model import Preference
from qwq_rl.rewards.scorer import Scorer
from qwq_rl.rewards.versions import digest, verifier_versions
from qwq_rl.rollouts.collect import Collector
from qwq_rl.rollouts.scoring import RoundScorer
from qwq_rl.rollouts.verdict_log import VerdictLog, verdict_log_of, verdict_logs_beside
from qwq_rl.stages.callbacks import Evaluator, Recorder
from qwq_rl.stages.context import StageContext, load_model, load_sources, shared_arguments
from qwq_rl.stages.lora import adapter_of, without_wrapper
from qwq_rl.training.critic import Critic, CriticPlan, build_critic_model
from qwq_rl.training.policy_trainer import PolicyTrainer
from qwq_rl.training.update import Objective

TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 32768
"""Padded tokens of a micro-batch, if the recipe does not say; on a CPU, as many as its caches hold."""


def build_rl(recipe: RlRecipe, context: StageContext, evaluator: Evaluator) -> PolicyTrainer:
    """Return the trainer of an `rl` stage, ready to train."""
    # Rounded up: the steps may end within a round.
    rounds = -(-recipe.steps // recipe.update.of_a_round)
    sources = load_sources(recipe.data, recipe.seed)
    scorer = Scorer(recipe.domains, recipe.gates)
    if recipe.trl.get("use_vllm"):
        check_vllm()
    # Before any model is loaded: broken rows or verifiers stop the stage at once.
    if PartialState().is_main_process:
        audit_stage(mix(sources, recipe.seed, recipe.rollout.prompts, rounds), scorer, recipe, context.folder)
    preference = None
    if recipe.reward_model is not None:
        model_place = context.locate(recipe.reward_model.from_)
        preference = Preference(model_place, context.folder.path / "preference.json")
    # The order matters: under ZeRO-3, transformers shards every model loaded after these arguments exist. The reward
    # model above must stay whole; policy, reference and critic below are sharded.
    config = grpo_config(recipe, context)
    model, tokenizer = load_model(recipe.model, context, recipe.seed)
    trainer = PolicyTrainer(
        recipe,
        model,
        tokenizer,
        config,
        objective_of(recipe),
        recipe.update.micro_tokens or (TOKENS_ON_GPU if torch.cuda.is_available() else TOKENS_ON_CPU),
        context.folder,
        context.clock,
        shares_prompts,
        by_another(recipe),
        adapter_of(recipe.model.lora, model, "CAUSAL_LM", recipe.seed),
    )
    process = (trainer.accelerator.process_index, trainer.accelerator.num_processes)
    source = PromptSource(sources, recipe.seed, recipe.rollout.sampling)
    other_logs = verdict_logs_beside(context.folder, *process)
    verdict_log = VerdictLog(verdict_log_of(context.folder, process[0]), _judges_digest(recipe), other_logs)
    round_scorer = RoundScorer(recipe, scorer, preference, verdict_log)
    sampler = _sampler(recipe, trainer, tokenizer, context)
    collector = Collector(recipe, source, sampler, round_scorer, tokenizer, process)
    trainer.collect_with(collector, _critic(recipe, context, trainer))
    trainer.add_callback(
        Recorder(
            context.folder,
            recipe.kind,
            context.clock,
            context.stop,
            recipe.rollout.prompts * recipe.rollout.generations // recipe.update.updates_per_rollout,
            trainer.details,
            recipe.evaluate,
            evaluator,
            recipe.checkpoint.keep,
        )
    )
    if not torch.cuda.is_available():
        # The policy's entropy over the whole vocabulary is needed only if it is part of the loss.
        every_field = recipe.update.entropy > 0
        use_compact_head(
            without_wrapper(trainer.accelerator.unwrap_model(trainer.model)),
            recipe.rollout.temperature,
            every_field=every_field,
        )
        if trainer.ref_model is not None:
            use_compact_head(
                trainer.accelerator.unwrap_model(trainer.ref_model), recipe.rollout.temperature, every_field=False
            )
    return trainer


def _judges_digest(recipe: RlRecipe) -> str:
    """Return a hash of what decides the verdicts: verifiers, their parameters and versions, and the reward model."""
    versions = sorted(verifier_versions(recipe.domains).items())
    return digest(repr((versions, recipe.gates, recipe.reward_model, sorted(recipe.domains.items()))))


def _critic(recipe: RlRecipe, context: StageContext, trainer: PolicyTrainer) -> Critic | None:
    block = recipe.critic
    if block is None:
        return None
    plan = CriticPlan(
        lr=block.lr,
        warmup=block.warmup,
        epochs=block.epochs,
        minibatches=block.minibatches,
        clip=block.clip,
        gradient_clip=recipe.update.gradient_clip,
        tokens=trainer.micro_tokens,
    )
    model_place = context.locate(str(block.from_ or recipe.model.from_))
    return Critic(build_critic_model(model_place), plan, trainer.accelerator)


def _sampler(
    recipe: RlRecipe, trainer: PolicyTrainer, tokenizer: PreTrainedTokenizerBase, context: StageContext
) -> Sampler:
    """Return the sampler: our own decoder, unless the recipe asks for another one."""
    if recipe.rollout.server is not None:
        server = recipe.rollout.server
        weights = _weights_folder(context.folder.path, server.weights)
        return ServedSampler(trainer, tokenizer, server.urls, server.timeout_s, weights, recipe.rollout.max_tokens)
    if recipe.trl.get("use_vllm"):
        return vllm_sampler(trainer, tokenizer)
    if recipe.trl.get("use_transformers_continuous_batching"):
        return batching_sampler(trainer, tokenizer)
    return own_sampler(trainer, tokenizer)


def _weights_folder(stage_folder: Path, shared: str | None) -> Path:
    """Return where the policy is written for vLLM servers: in the shared folder if given, else in the stage's."""
    folder = stage_folder.resolve()
    # Several runs may use one shared folder, so the name has run and stage.
    return Path(shared).resolve() / f"{folder.parent.name}-{folder.name}" if shared else folder / "served"


def objective_of(recipe: RlRecipe) -> Objective:
    """Return the loss that the recipe asks for."""
    update, algorithm = recipe.update, ALGORITHMS[recipe.algorithm]
    parameters: dict[str, Any] = {}
    if algorithm.loss is clipped:
        parameters["clip"] = Clip(update.clip[0], update.clip[1], update.delta)
    elif algorithm.loss is cispo:
        parameters["ceiling"] = 1 + update.clip[1]
    correction = update.correction
    if correction is None and by_another(recipe):
        correction = Correction()  # the log-probabilities of another sampler may differ by more than rounding
    bounds = vars(correction) if correction is not None else None
    return Objective(algorithm, parameters, update.kl, update.entropy, bounds)


def grpo_config(recipe: RlRecipe, context: StageContext) -> GRPOConfig:
    """Return TRL's arguments for a recipe. Rounds and updates are our own code; TRL only gets their sizes."""
    rollout, update = recipe.rollout, recipe.update
    generations = max(2, rollout.generations)  # TRL refuses 1, which we allow
    arguments: dict[str, Any] = {
        **shared_arguments(recipe, context),
        "per_device_train_batch_size": -(-rollout.prompts // context.world_size) * generations,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_generations": generations,
        "max_completion_length": rollout.max_tokens,
        "temperature": rollout.temperature,
        "beta": update.kl,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "weight_decay": 0.0,
        "log_completions": False,
        # Our objective has its own correction; TRL's would ask for log-probabilities in TRL's own steps.
        "vllm_importance_sampling_correction": False,
    }
    return GRPOConfig(**arguments | dict(recipe.trl))
