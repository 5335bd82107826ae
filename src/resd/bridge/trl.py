"""RESD's context inside TRL's SDPOTrainer: reflections, a playbook, solutions (docs/trl.md).

What is learnt of a batch and what the teacher sees of it is `methods.resd`, as in `resd train`;
here are only the ways in and out: TRL's batch becomes rollouts, and prompts become TRL's tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from resd.backend import woven
from resd.bridge.check import check, example_of, room
from resd.config import ResdConfig, TeacherConfig
from resd.context import Playbook, PromptBuilder, TemplateError, Templates
from resd.engines import Request, Sampling
from resd.engines.base import left_pad
from resd.engines.completion import CompletionReader
from resd.engines.hf import HFEngine
from resd.errors import UserError
from resd.loop.rollouts import settled
from resd.loop.writer import writing_requests
from resd.methods.base import Notes, Services, StepReport, Written
from resd.methods.resd import Resd
from resd.models.chat import ChatFormat
from resd.models.load import context_length
from resd.runs.atomic import write_text
from resd.runs.seeds import derive
from resd.types import Completion, Outcome, Rollout, TrainingSample

_STATE = "resd.PlaybookContext"


class PlaybookContext:
    """Builds the teacher's prompts of an SDPOTrainer from a playbook that the model writes.

    Mount it before `train()`: `trainer.teacher_context_builder = PlaybookContext(trainer)`. It is
    kept in TRL's checkpoints and comes back with `train(resume_from_checkpoint=...)`; beside each
    of them, and in the output directory at the end, stand `playbook.json` and `playbook.md`.

    Feedback on a completion is what the reward functions say: one that has an attribute
    `feedback`, a list of texts for the completions of its last call. Where none says anything it
    is the dataset's column `privileged_context`.

    Args:
        trainer: TRL's SDPOTrainer; its prompts are chat messages.
        config: of reflections, playbook, solutions and prompts, as `[method]` of a run. What it
            says of the loss is refused if it was set: SDPOConfig decides that.
        templates: directories whose `*.jinja` files replace the built-in prompts.

    Attributes:
        playbook: the playbook.
        last_metrics: numbers of the last batch; TRL logs them.

    Raises:
        UserError: TRL is another version, or the trainer is set up in a way that was never tried.
    """

    def __init__(
        self,
        trainer: Any,
        config: ResdConfig | None = None,
        templates: Sequence[str | Path] = (),
    ) -> None:
        config = config or ResdConfig()
        check(trainer, config)
        self._trainer = trainer
        self.last_metrics: dict[str, float] = {}
        model, tokenizer = self._student(), trainer._tokenizer
        chat = ChatFormat(tokenizer, trainer.chat_template_kwargs.get("enable_thinking", True))
        context = context_length(model.config, None)
        args = trainer.args
        self._reader = CompletionReader(model, tokenizer)
        self._engine = HFEngine(
            model, tokenizer, args.per_device_train_batch_size * args.steps_per_generation, context
        )
        try:
            builder = PromptBuilder(
                Templates([Path(place) for place in templates]),
                config.budgets,
                chat.count_text,
                chat.count,
                room(trainer, config, context),
                chat.harmless,
                add_only=config.playbook.add_only,
            )
        except TemplateError as error:
            raise UserError(f"templates: {error}") from None
        services = Services(
            builder=builder,
            encode=chat.encode,
            count_tokens=chat.count_text,
            write=self._write,
            student=model,
            weights={},
            trace=lambda *args, **fields: None,
            phase=lambda name: nullcontext(),
            seed=args.seed,
            pad_id=self._engine.pad_id,
        )
        # TRL has a teacher; this one would be a second copy of the weights.
        live = config.model_copy(update={"teacher": TeacherConfig(kind="live")})
        self._encode = chat.encode
        self._method = Resd(live, services)
        trainer.add_callback(_Keeper(self))

    @property
    def playbook(self) -> Playbook:
        """The playbook as it is now."""
        return self._method.playbook

    def build(
        self,
        output: dict[str, Any],
        prompts: Sequence[Any],
        rewards: torch.Tensor,
        feedbacks: Sequence[Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Learn from a batch and build its teacher prompts; TRL calls this.

        In evaluation the teacher sees the playbook, and nothing is learnt or reflected on.

        Args:
            output: TRL's batch of B responses of at most R tokens: `prompt_ids` and `prompt_mask`
                [B, P], `completion_ids` and `completion_mask` [B, R], `raw_completion_lengths` [B].
            prompts: chat messages of each.
            rewards: [B], the weighted sum of the reward functions.
            feedbacks: the column `privileged_context`, a text or None each.

        Returns:
            `teacher_input_ids` and `teacher_attention_mask` [B, P' + R], and
            `self_distillation_mask` [B], 0 where there is nothing to teach.

        Raises:
            UserError: a prompt that is no chat, or feedback of another length.
        """
        trainer, report = self._trainer, StepReport()
        here = self._rollouts(output, prompts, rewards, feedbacks)
        # Every process learns the same from the responses of all.
        batch: list[Rollout] = gather_object(here)
        first = trainer.accelerator.process_index * len(here)
        if trainer.model.training:
            notes = self._method.learn(batch, report)
        else:
            notes = Notes([None] * len(batch))
        samples = self._method.samples(batch, notes, report)
        self.last_metrics = self._metrics(batch, samples, report)
        return self._tensors(output, here, samples[first : first + len(here)])

    def state_dict(self) -> dict[str, Any]:
        """Playbook and solutions, as plain JSON."""
        return self._method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._method.load_state_dict(state)

    def save(self, directory: str | Path) -> None:
        """Write `playbook.json` and `playbook.md` into a directory that exists."""
        for name, text in self._method.artifacts("Playbook").items():
            write_text(Path(directory) / name, text)

    # -- from TRL's batch to rollouts, and back ----------------------------------------------

    def _rollouts(
        self,
        output: Mapping[str, Any],
        prompts: Sequence[Any],
        rewards: torch.Tensor,
        column: Sequence[Any] | None,
    ) -> list[Rollout]:
        args = self._trainer.args
        first = self._trainer.accelerator.process_index * len(prompts)
        sampling = Sampling(args.temperature, args.top_p, args.max_completion_length)
        said = self._feedback(len(prompts), column)
        lengths = output["raw_completion_lengths"].tolist()
        rows = output["completion_ids"].tolist()
        asked = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
        ]
        rollouts = []
        for i, (prompt, reward) in enumerate(zip(prompts, rewards.tolist(), strict=True)):
            seed = derive(args.seed, "trl", self.playbook.updates, first + i)
            request = Request(tuple(asked[i]), sampling, seed)
            completion = self._reader.read(request, rows[i][: lengths[i]], ())
            passed = reward >= args.success_reward_threshold
            outcome = settled(completion, Outcome(reward, passed, said[i]))
            rollouts.append(
                Rollout(example_of(prompt), request.prompt_ids, completion, outcome, seed)
            )
        return rollouts

    def _feedback(self, number: int, column: Sequence[Any] | None) -> list[str]:
        """Feedback on each completion: of the reward functions, else of the column."""
        trainer = self._trainer
        told: dict[str, list[str]] = {}
        for name, function in zip(trainer.reward_func_names, trainer.reward_funcs, strict=True):
            words = getattr(function, "feedback", None)
            if words is None:
                continue
            if not isinstance(words, list) or len(words) != number:
                raise UserError(
                    f"reward function {name}: its feedback must be a list of {number} texts, one "
                    f"for each completion of this call, found {words!r:.80}"
                )
            function.feedback = None  # what it says of this batch says nothing of the next
            told[name] = [str(text or "").strip() for text in words]
        said = []
        for i in range(number):
            here = {name: words[i] for name, words in told.items() if words[i]}
            named = [f"{name}: {text}" if len(told) > 1 else text for name, text in here.items()]
            given = column[i] if column is not None and isinstance(column[i], str) else ""
            said.append("\n\n".join(named) or given)
        return said

    def _tensors(
        self,
        output: Mapping[str, Any],
        rollouts: Sequence[Rollout],
        samples: Sequence[TrainingSample | None],
    ) -> dict[str, torch.Tensor]:
        completions = output["completion_ids"]
        rows = [
            s.teacher_ids if s else r.prompt_ids for r, s in zip(rollouts, samples, strict=True)
        ]
        ids, mask = left_pad(rows, self._trainer._tokenizer.pad_token_id)
        place = completions.device
        return {
            "teacher_input_ids": torch.cat([ids.to(place), completions], dim=1),
            "teacher_attention_mask": torch.cat([mask.to(place), output["completion_mask"]], dim=1),
            "self_distillation_mask": torch.tensor([float(s is not None) for s in samples]).to(
                place
            ),
        }

    def _metrics(
        self,
        batch: Sequence[Rollout],
        samples: Sequence[TrainingSample | None],
        report: StepReport,
    ) -> dict[str, float]:
        """TRL's names where it has one (it warns by them), ours beside."""
        trainer = self._trainer
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        groups = [batch[i : i + size] for i in range(0, len(batch), size)]
        solved = sum(any(rollout.passed for rollout in group) for group in groups)
        heard = sum(bool(rollout.outcome and rollout.outcome.feedback) for rollout in batch)
        return {
            "self_distillation/success_group_fraction": solved / len(groups),
            "self_distillation/success_sample_fraction": sum(r.passed for r in batch) / len(batch),
            "self_distillation/feedback_available_fraction": heard / len(batch),
            "self_distillation/reprompt_sample_fraction": (
                sum(sample is not None for sample in samples) / len(batch)
            ),
            **report.metrics,
            **{f"context/{reason}": float(number) for reason, number in report.counts.items()},
        }

    # -- what the model writes ---------------------------------------------------------------

    def _student(self) -> Any:
        return self._trainer.accelerator.unwrap_model(self._trainer.model)

    def _write(
        self,
        what: str,
        wanted: Sequence[Written],
        max_new_tokens: int,
        temperature: float,
        teacher: Any = None,
    ) -> list[Completion]:
        """Reflections and curations of the whole batch, each process its part."""
        trainer = self._trainer
        requests = writing_requests(self._encode, what, wanted, max_new_tokens, temperature)
        model, lent = self._student(), nullcontext()
        if teacher is not None:
            model = trainer.accelerator.unwrap_model(trainer.teacher_model)
            lent = trainer._get_teacher_context_for_self_distillation()
        self._engine.sync(model, what)
        number = trainer.accelerator.num_processes
        with lent:
            part = self._engine.generate(requests[trainer.accelerator.process_index :: number])
        return woven(gather_object([part]))


class _Keeper(TrainerCallback):
    """Puts the context into TRL's checkpoints, and takes it out again."""

    def __init__(self, context: PlaybookContext) -> None:
        self._context = context

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(_STATE)
        if kept is not None:
            self._context.load_state_dict(kept)
        elif state.global_step:
            warnings.warn(
                f"this checkpoint of step {state.global_step} holds no playbook: it was saved "
                "without PlaybookContext, and the playbook starts empty",
                stacklevel=2,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.stateful_callbacks[_STATE] = self._context.state_dict()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._context.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._context.save(args.output_dir)
