"""What a method and a policy update need of a run, without a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from resd.backend import Local
from resd.config import METHODS, TrainConfig
from resd.context import ContextBudgets, PromptBuilder, Templates
from resd.loop.masters import Masters
from resd.loop.update import PolicyUpdate
from resd.methods import Method, make_method
from resd.methods.base import Services, StepReport, Written
from resd.types import ChatMessage, Completion, Example, Outcome, Rollout, TrainingSample

Samples = list[TrainingSample | None]


def encode(messages: Sequence[ChatMessage]) -> list[int]:
    """A prompt as its characters: short, and nothing is lost."""
    return [ord(character) % 256 for message in messages for character in message["content"]]


def nobody_writes(*args: Any, **kwargs: Any) -> list[Completion]:
    """For methods that ask the model for nothing."""
    raise AssertionError("nothing is to be written here")


def services(
    student: torch.nn.Module | None = None,
    write: Any = nobody_writes,
    masters: Masters | None = None,
    trace: Callable[..., None] = lambda *args, **kwargs: None,
    max_tokens: int = 4000,
) -> Services:
    """Services with the built-in templates, and a character for a token."""
    student = student or torch.nn.Linear(2, 2)
    return Services(
        builder=PromptBuilder(
            Templates(), ContextBudgets(), len, lambda m: len(encode(m)), max_tokens
        ),
        encode=encode,
        count_tokens=len,
        write=write,
        student=student,
        weights=(masters or Masters(student, None)).weights,
        trace=trace,
        phase=lambda name: nullcontext(),
        seed=0,
        pad_id=0,
    )


def method(name: str, write: Any = nobody_writes, **config: Any) -> Any:
    """A method whose model is never run."""
    return make_method(METHODS[name](**config), services(write=write))


def policy_update(
    model: torch.nn.Module,
    name: str = "resd",
    train: dict[str, Any] | None = None,
    compute: torch.dtype | None = None,
    on_sampler: bool = False,
    shake: float = 0.0,
    **config: Any,
) -> PolicyUpdate:
    """A policy update of a model; `shake` moves the student away from its teacher before."""
    masters = Masters(model, compute)
    made: Method[Any] = make_method(METHODS[name](**config), services(model, masters=masters))
    if shake:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in masters.weights.values():
                weight += shake * torch.randn(weight.shape, generator=generator)
        masters.publish()
    settings = {"max_grad_norm": 1e9, "warmup_steps": 0, "lr": 1e-2, **(train or {})}
    return PolicyUpdate(model, masters, made, TrainConfig(**settings), 0, on_sampler=on_sampler)


def samples(number: int = 16) -> Samples:
    """Samples of every length, weight and advantage; every fifth teaches nothing."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 300, (length,), generator=generator).tolist())

    made: Samples = []
    for i in range(number):
        sample = TrainingSample(
            prompt_ids=ids(3 + 5 * i % 11),
            response_ids=ids(1 + 7 * i % 13),
            teacher_ids=ids(9 + 3 * i % 17),
            weight=0.5 + i % 4,
            advantage=(-1.0) ** i * (1 + i % 3),
        )
        made.append(None if i % 5 == 4 else sample)
    return made


def gradient(update: PolicyUpdate, batch: Samples) -> torch.Tensor:
    """The gradient that the optimiser is given."""
    found: list[torch.Tensor] = []

    def step() -> None:
        grads = [p.grad for p in update.student.parameters()]
        found.append(torch.cat([g.flatten() for g in grads if g is not None]).clone())

    update.optimizer.step = step  # type: ignore[method-assign]
    update.run(batch, StepReport())
    assert len(found) == 1
    return found[0]


class Calls:
    """Counts what goes through a module, and the rows of the ids that a model is given."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.calls = self.rows = 0
        module.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.calls += 1
        self.rows += len(kwargs.get("input_ids", ()))


def maker(place: Path) -> Callable[..., PolicyUpdate]:
    """Makes policy updates of fresh copies of a model, whose teacher is another model."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)

    def build(
        method: str = "resd", train: dict[str, Any] | None = None, **config: Any
    ) -> PolicyUpdate:
        return policy_update(copy.deepcopy(whole), method, train, shake=0.05, **config)

    return build


def rollout(
    example: str = "one",
    answer: str | None = "an answer",
    feedback: str = "it failed",
    *,
    passed: bool = False,
    scored: bool = True,
    reward: float | None = None,
    seed: int = 0,
    log_probs: tuple[float, ...] | None = None,
) -> Rollout:
    """A scored response to an example whose question is `do ID`."""
    outcome = Outcome(
        reward=float(passed) if reward is None else reward,
        passed=passed,
        feedback="" if passed else feedback,
    )
    ids = tuple(encode([{"role": "assistant", "content": answer or "<think> cut"}]))
    return Rollout(
        Example(example, [{"role": "user", "content": f"do {example}"}]),
        prompt_ids=(1, 2, 3),
        completion=Completion(
            ids,
            f"<think> so </think>{answer}" if answer is not None else "<think> cut",
            "stop" if answer is not None else "length",
            log_probs=log_probs,
            answer=answer,
        ),
        outcome=outcome if scored else None,
        seed=seed,
    )


class Scripted:
    """A writer that answers by what it is asked, and remembers it.

    Args:
        answers: by kind of text, each a list of answers in order (None: cut off in its thinking)
            or a function of the prompt's text.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, Written]] = []
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        what: str,
        wanted: Sequence[Written],
        max_new_tokens: int,
        temperature: float,
        teacher: Any = None,
    ) -> list[Completion]:
        self.calls.append(
            {"what": what, "n": len(wanted), "limit": max_new_tokens, "temperature": temperature}
            | {"teacher": teacher}
        )
        outputs = []
        for item in wanted:
            text = "\n".join(f"{m['role']}: {m['content']}" for m in item.prompt)
            self.asked.append((what, text, item))
            script = self.answers.get(what)
            answer = script(text) if callable(script) else script.pop(0) if script else "{}"
            outputs.append(Completion((1,), answer or "<think> so", "stop", answer=answer))
        return outputs

    def prompts(self, what: str) -> list[str]:
        """The prompts of one kind, in order."""
        return [text for kind, text, _ in self.asked if kind == what]


def carry_over(update: PolicyUpdate, place: Path) -> Callable[[PolicyUpdate], None]:
    """Write an update's state now; returns what restores it into another one."""
    backend, updates = Local(), update.updates
    backend.save(place, {**update.tensors(), "method": update.method.tensors()})

    def restore(other: PolicyUpdate) -> None:
        other.expect(backend.names(place))
        tensors = {**other.tensors(), "method": other.method.tensors()}
        backend.load(place, tensors)
        other.restored(updates)
        other.method.load_tensors(tensors["method"])

    return restore


def smallest() -> Any:
    """As small as a language model can be."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8))
