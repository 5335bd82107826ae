"""A run's configuration. Unknown keys fail; every description becomes `resd train --help`.

Class defaults are the paper's settings (method.md section 5, Appendix G). A preset is a TOML file
whose values stand between the defaults and the user's; `lab` is what `resd train` trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    field_validator,
    model_validator,
)

from resd import plugins
from resd.config.anchors import AnchorConfig
from resd.config.checkpoint import CheckpointConfig
from resd.config.evaluation import EvalConfig
from resd.config.handoff import SwitchConfig
from resd.config.health import HealthConfig
from resd.config.part import Part
from resd.config.stream import StreamPart
from resd.config.traces import TracesConfig
from resd.context import ContextBudgets, PlaybookConfig
from resd.errors import close_to

Support = Literal["student", "teacher", "both", "full"]


class LoraConfig(Part):
    """Train low-rank adapters (peft) instead of all weights."""

    rank: int = Field(16, ge=1, description="rank of the adapters")
    alpha: int = Field(32, ge=1, description="scale of the adapters")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the adapters")
    target_modules: str | list[str] = Field("all-linear", description="modules that get adapters")


class ModelConfig(Part):
    """The student."""

    path: str = Field(
        "", description="'lab', 'smol', a directory in Hugging Face format, or a hub id"
    )
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="weights' dtype; full training needs float32"
    )
    compute_dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="dtype of forward and backward; the weights' own by default"
    )
    lora: LoraConfig | None = Field(None, description="LoRA adapters; none trains all weights")
    device: str = Field("auto", description="auto, cpu, cuda, ...")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; by default 1 below 50 million parameters, else all"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    attention: str | None = Field(
        None,
        description="eager, sdpa, flash_attention_2, flex_attention, ...; the model's own by "
        "default",
    )
    check_memory: bool = Field(
        True,
        description="refuse a run whose weights, gradients, optimiser and teacher are larger than "
        "the device; false warns only",
    )
    max_context: int | None = Field(
        None, ge=16, description="most tokens of prompt and response; the model's own by default"
    )


class RolloutConfig(Part):
    """How the student answers (paper: temperature 1.0, top-p 0.95)."""

    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus")
    max_new_tokens: int = Field(4096, ge=1, description="most tokens of a response")
    max_prompt_tokens: int = Field(8192, ge=1, description="longer prompts are skipped, counted")
    batch_size: int = Field(32, ge=1, description="prompts generated at once")
    thinking: bool = Field(True, description="let the chat template switch thinking on")
    env_workers: int = Field(1, ge=1, description="processes (or threads) that evaluate responses")
    env_mode: Literal["process", "fresh", "thread"] = Field(
        "process",
        description="where responses are evaluated: in processes that load the task themselves; in "
        "a fresh fork for each response; in threads of the trainer",
    )
    env_seconds: float | None = Field(
        60.0, gt=0, description="most time to evaluate a response; later it counts as failed"
    )


# Where each engine lives; its module says which of the options below are its own.
ENGINES: dict[str, str] = {
    "hf": "resd.engines.hf",
    "vllm": "resd.engines.vllm",
    "vllm_server": "resd.engines.vllm_server",
}


class EngineConfig(Part):
    """What generates. An option that is not set is as its engine has it by default."""

    kind: str = Field(
        "hf",
        description="hf: transformers, on the trained model itself; vllm: vLLM in this process, "
        "on a copy of the weights; vllm_server: a vLLM server that runs already; an installed one, "
        "path/to/file.py:NAME or module:NAME",
    )
    args: dict[str, Any] | None = Field(
        None, description="arguments of an engine of your own, as it names them"
    )
    memory: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="(vllm) share of the device's memory for its weights and KV cache; by default "
        "0.3 of a GPU, 1 GiB of cache on a CPU",
    )
    sleep: bool | None = Field(
        None, description="(vllm) give its GPU memory back during updates; yes by default"
    )
    url: str | None = Field(
        None, description="(vllm_server) where it listens, for example http://localhost:8000"
    )
    weights: Path | None = Field(
        None,
        description="(vllm_server) directory that both processes see, for the hand-over of "
        "weights; a temporary one by default",
    )
    adapters: bool | None = Field(
        None,
        description="(vllm_server) hand over LoRA adapters by themselves, not merged; needs a "
        "server that takes them, no by default",
    )
    seconds: float | None = Field(
        None,
        gt=0,
        description="(vllm_server) longest wait for one answer of the server; 3600 by default",
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in ENGINES and plugins.place_of("engine", kind) is None:
            known = [*ENGINES, *plugins.installed("engine")]
            meant = close_to(kind, known)
            raise ValueError(f"there is no such engine{meant}; known: {', '.join(known)}")
        return kind


class TrainConfig(Part):
    """The stream protocol and the optimiser (paper: App. G)."""

    steps: int | None = Field(None, ge=1, description="training steps; one pass by default")
    batch_size: int = Field(32, ge=1, description="prompts a batch")
    shuffle: bool = Field(True, description="examples in another order each pass, by the seed")
    inner_iterations: int = Field(
        4, ge=1, description="steps on each batch, each with fresh rollouts (K)"
    )
    updates_per_batch: int = Field(
        1, ge=1, description="optimiser steps on each batch of rollouts, importance-weighted"
    )
    optimizer: Literal["adamw", "adamw_stochastic"] = Field(
        "adamw", description="adamw_stochastic: torchao's, for weights in bfloat16"
    )
    lr: float = Field(1e-6, gt=0, le=10, description="learning rate after warm-up")
    warmup_steps: int = Field(10, ge=0, description="optimiser steps of linear warm-up")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    micro_batch_tokens: int = Field(
        16384,
        ge=1,
        description="most tokens of a forward pass, padding too; a longer sample stands alone; "
        "changes no result",
    )
    chunk_tokens: int = Field(
        512, ge=1, description="response tokens whose logits are made at once; changes no result"
    )
    early_stop: bool = Field(
        False, description="leave an example out of later inner iterations once it passed, by id"
    )


class TeacherConfig(Part):
    """The self-teacher (paper: pi_old)."""

    kind: Literal["frozen", "ema", "live"] = Field("ema", description="frozen, ema or live weights")
    rate: float = Field(1e-4, gt=0, le=1, description="EMA rate: old <- (1-rate) old + rate new")
    at_boundary: Literal["keep", "rebase"] = Field(
        "keep",
        description="(stream) where a new task begins, a frozen or EMA teacher stays what it is, "
        "or becomes the student of that time",
    )
    offload: bool = Field(
        False,
        description="several processes: keep a teacher with weights of its own in host memory",
    )


class DistillConfig(Part):
    """Self-distillation, shared by resd, sdpo and sdpo_ss (paper: Eq. 1, App. A)."""

    rollouts: int = Field(1, ge=1, description="rollouts per prompt (N)")
    alpha: float = Field(
        0.5, ge=0, le=1, description="0 forward KL, 1 reverse KL, between: generalised JSD"
    )
    top_k: int | None = Field(100, ge=1, description="tokens kept (k); none is the full vocabulary")
    support: Support = Field(
        "both",
        description="whose top tokens are kept: student (paper; cannot teach what the student "
        "finds improbable), teacher, both (by the larger probability), full (all tokens)",
    )
    tail: bool = Field(True, description="one more bucket with the remaining mass")
    ratio_min: float | None = Field(0.2, ge=0, description="lower clip of teacher/student")
    ratio_max: float | None = Field(None, gt=0, description="upper clip of teacher/student")
    aggregation: Literal["token_mean", "sample_mean", "released"] = Field(
        "sample_mean", description="mean over tokens, over samples, or as the released scripts"
    )
    success_weights: tuple[NonNegativeFloat, NonNegativeFloat] | None = Field(
        None, description="exponents a, b of the success-rate weights (Eq. 2); none is off"
    )
    importance_cap: float = Field(2.0, gt=0, description="cap of the off-policy token weights")
    use_trial: bool = Field(True, description="the teacher sees the failed trial")
    teacher: TeacherConfig = Field(default_factory=TeacherConfig, description="the self-teacher")
    budgets: ContextBudgets = Field(default_factory=ContextBudgets, description="section budgets")
    max_teacher_tokens: int = Field(16384, ge=16, description="most tokens of a teacher's prompt")
    anchors: AnchorConfig = Field(default_factory=AnchorConfig, description="against forgetting")

    @property
    def most_rollouts(self) -> int:
        """Responses a prompt, at most."""
        return self.rollouts

    @model_validator(mode="after")
    def _ratios(self) -> DistillConfig:
        if None not in (self.ratio_min, self.ratio_max) and self.ratio_min > self.ratio_max:  # type: ignore[operator]
            raise ValueError(f"ratio_min {self.ratio_min} is above ratio_max {self.ratio_max}")
        return self


class ResdConfig(DistillConfig):
    """RESD: playbook, reflections and solutions feed the teacher (paper: Algorithm 1)."""

    name: Literal["resd"] = Field("resd", description="the method")
    use_reflection: bool = Field(True, description="the teacher sees the reflection")
    use_playbook: bool = Field(
        True, description="the teacher sees the playbook, which is written in any case"
    )
    use_solutions: bool = Field(
        True, description="cache successes and show them; off, a success still shows its own"
    )
    deduplicate: bool = Field(True, description="one curation an example, however many rollouts")
    retry_unparsed: bool = Field(
        False, description="ask once more for a reflection or curation that cannot be parsed"
    )
    success_tags: bool = Field(True, description="a lighter call tags entries after successes")
    reflector: Literal["student", "teacher"] = Field(
        "student", description="whose weights write reflections and curations"
    )
    reflection_tokens: int = Field(1024, ge=8, description="most tokens of a reflection")
    curation_tokens: int = Field(1024, ge=8, description="most tokens of a curation")
    reflection_temperature: float = Field(
        1.0, ge=0, description="temperature of reflections and curations; 0 is greedy"
    )
    max_solutions: int = Field(4096, ge=1, description="examples in the solution buffer")
    playbook: PlaybookConfig = Field(default_factory=PlaybookConfig, description="the playbook")
    lessons: list[str] | None = Field(
        None,
        description="the teacher sees these in place of the playbook: one written by hand, or as a "
        "control another task's",
    )
    control: Literal["shuffled_playbook", "shuffled_reflection"] | None = Field(
        None,
        description="for ablations, the teacher sees what is of no use: the playbook's entries "
        "with their last words exchanged, or another example's reflection",
    )


class SdpoConfig(DistillConfig):
    """SDPO: the teacher sees feedback, and a peer's success when there are several rollouts."""

    name: Literal["sdpo"] = Field("sdpo", description="the method")
    use_trial: bool = Field(False, description="the teacher sees the failed trial")
    feedback_beside_peer: bool = Field(
        False, description="the teacher sees the feedback also where a peer succeeded"
    )


class SdpoSsConfig(SdpoConfig):
    """SDPO+ss: a success is its own demonstration."""

    name: Literal["sdpo_ss"] = Field("sdpo_ss", description="the method")  # type: ignore[assignment]


class GrpoConfig(Part):
    """GRPO with groups of 8, no KL term (method.md section 3)."""

    name: Literal["grpo"] = Field("grpo", description="the method")
    rollouts: int = Field(8, ge=1, description="rollouts per prompt (the group)")
    scale_rewards: bool = Field(True, description="divide advantages by the group's deviation")
    clip_low: float = Field(0.2, ge=0, lt=1, description="lower clip of the ratio, 1 - clip_low")
    clip_high: float = Field(0.28, ge=0, description="upper clip of the ratio, 1 + clip_high")
    aggregation: Literal["token_mean", "sample_mean", "released"] = Field(
        "token_mean", description="mean over tokens or over samples"
    )
    anchors: AnchorConfig = Field(default_factory=AnchorConfig, description="against forgetting")

    @property
    def most_rollouts(self) -> int:
        """Responses a prompt, at most."""
        return self.rollouts


class HandoffConfig(ResdConfig):
    """RESD until rewards carry a signal, then GRPO (the paper's section on limits suggests it)."""

    name: Literal["handoff"] = Field("handoff", description="the method")  # type: ignore[assignment]
    switch: SwitchConfig = Field(default_factory=SwitchConfig, description="when to hand over")
    grpo: GrpoConfig = Field(default_factory=GrpoConfig, description="what takes over")
    grpo_updates: int = Field(
        1, ge=1, description="optimiser steps on each batch of rollouts once it has taken over"
    )

    @property
    def most_rollouts(self) -> int:
        """Responses a prompt, at most."""
        return max(self.rollouts, self.grpo.rollouts)

    @model_validator(mode="after")
    def _one_set_of_anchors(self) -> HandoffConfig:
        if self.grpo.anchors.weight and self.grpo.anchors != self.anchors:
            raise ValueError("anchors of a hand-off are set by method.anchors, for both methods")
        return self


BuiltInMethod = Annotated[
    ResdConfig | SdpoConfig | SdpoSsConfig | GrpoConfig | HandoffConfig,
    Field(discriminator="name"),
]
METHODS: dict[str, type[Part]] = {
    "resd": ResdConfig,
    "sdpo": SdpoConfig,
    "sdpo_ss": SdpoSsConfig,
    "grpo": GrpoConfig,
    "handoff": HandoffConfig,
}


class RunConfig(Part):
    """One run."""

    preset: str | None = Field(None, description="built-in settings to start from; see resd tasks")
    task: str = Field(
        "lab",
        description="a built-in or installed task, reasoning_gym:NAME, verifiers:NAME, "
        "path/to/file.py:Class or module:Class",
    )
    task_args: dict[str, Any] = Field(default_factory=dict, description="the task's own arguments")
    stream: list[StreamPart] = Field(
        default_factory=list,
        description="tasks that one student learns one after the other, a [[stream]] table each",
    )
    templates: Path | None = Field(None, description="directory of prompt templates of your own")
    output: Path | None = Field(None, description="run directory; runs/TASK-METHOD-sSEED if none")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything")
    model: ModelConfig = Field(default_factory=ModelConfig, description="the student")
    method: BuiltInMethod = Field(default_factory=ResdConfig, description="the method")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="rollouts")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="what generates")
    train: TrainConfig = Field(default_factory=TrainConfig, description="training")
    evaluation: EvalConfig = Field(default_factory=EvalConfig, description="validation")
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig, description="checkpoints"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        default_factory=list, description="trackers of accelerate, besides metrics.jsonl"
    )
    traces: TracesConfig = Field(
        default_factory=TracesConfig, description="what `resd report` shows beside the metrics"
    )
    health: HealthConfig = Field(default_factory=HealthConfig, description="signs of a dying run")

    @field_validator("stream")
    @classmethod
    def _names(cls, stream: list[StreamPart]) -> list[StreamPart]:
        names = [part.name for part in stream]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two tasks are named {twice}")
        return stream

    @property
    def tasks(self) -> list[str]:
        """The task, or those of the stream."""
        return [part.task or self.task for part in self.stream] or [self.task]
