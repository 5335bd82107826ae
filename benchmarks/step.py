"""What a training step costs: medians, ratios side by side, bookkeeping, counts of what is dear.

python benchmarks/step.py [--steps 6] [--rounds 3] [--model lab] [--without-trl]

Cases are interleaved round by round (machines are shared and noisy): compare ratios of one
invocation. Every case is the lab's world with one update a batch, 16 prompts, one thread:

- sdpo, resd: the lab as it is; its base model passes nothing, so every sample teaches.
- grpo: 8 responses a prompt, half of which pass by lot, so that every group has something to say.
- trl: TRL's SDPOTrainer on the same model, prompts and lengths as `sdpo`.

Bookkeeping is what is neither generation nor update nor environment.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import os
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from resd.tasks.lab import LabEnvironment

BATCH = 16
# Phases of a step: what is measured, and where it lies.
PHASES = {
    "generation": ["resd.engines.hf:HFEngine.generate"],
    "update": ["resd.loop.update:PolicyUpdate.run"],
    "environment": ["resd.tasks.scoring:Scorer.score"],
    "prompts": [
        *(f"resd.context.teacher_prompt:PromptBuilder.{n}" for n in ("teacher", "reflect")),
        *(f"resd.context.teacher_prompt:PromptBuilder.{n}" for n in ("curate", "review")),
        "resd.models.chat:ChatFormat.encode",
    ],
    "parsing": [
        *(f"resd.methods.resd:parse_{n}" for n in ("reflection", "curation", "success_tags")),
    ],
    "playbook": [f"resd.context.playbook.book:Playbook.{n}" for n in ("begin_update", "tag")]
    + ["resd.context.playbook.book:Playbook.apply", "resd.methods.resd:Resd.metrics"],
    "writing": [
        "resd.methods.resd:Resd.artifacts",
        "resd.loop.recorder:Recorder.step",
        "resd.loop.recorder:Recorder.trace",
        "resd.loop.trackers:Trackers.log",
    ],
}
WORK = ("generation", "update", "environment")


class HalfPass(LabEnvironment):
    """The lab where half of all responses pass by lot, whatever they say."""

    def evaluate(self, example, response):
        """The lab's outcome, or a success for every second text."""
        outcome = super().evaluate(example, response)
        lot = hashlib.blake2b(f"{example.id}/{response}".encode(errors="replace")).digest()[0]
        return replace(outcome, reward=float(lot % 2), passed=bool(lot % 2), cases_passed=lot % 2)


class Meter:
    """Seconds of functions, each without those that it calls, and how often they are called."""

    def __init__(self):
        self.seconds, self.calls, self._inside = Counter(), Counter(), []

    def timed(self, phase, function):
        """The function, its time counted for a phase."""

        @functools.wraps(function)
        def call(*arguments, **named):
            began = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - began
                self.seconds[phase] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return call

    def counted(self, name, function, size=lambda arguments: 1):
        """The function, its calls counted."""

        @functools.wraps(function)
        def call(*arguments, **named):
            self.calls[name] += size(arguments)
            return function(*arguments, **named)

        return call


@contextlib.contextmanager
def replaced(changes):
    """Attributes (owner, name, value) in place of others, for a while."""
    old = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in old:
            setattr(owner, name, value)


def find(place):
    """Owner and name of `module:Class.function`."""
    import importlib

    module, _, path = place.partition(":")
    owner = importlib.import_module(module)
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    return owner, name


def timers(meter):
    """Replacements that time the phases."""
    return [
        (owner, name, meter.timed(phase, getattr(owner, name)))
        for phase, places in PHASES.items()
        for owner, name in map(find, places)
    ]


def counters(meter, model_class):
    """Replacements that count what is dear."""
    from transformers import PreTrainedTokenizerBase

    from resd.models.line_tokens import LineTokens
    from resd.tasks.scoring import Scorer

    return [
        (
            PreTrainedTokenizerBase,
            "__call__",
            meter.counted("tokenizer calls", PreTrainedTokenizerBase.__call__),
        ),
        (LineTokens, "_read", meter.counted("tokenizer calls", LineTokens._read)),
        (
            PreTrainedTokenizerBase,
            "apply_chat_template",
            meter.counted("chat templates", PreTrainedTokenizerBase.apply_chat_template),
        ),
        (model_class, "forward", meter.counted("forwards", model_class.forward)),
        (
            Scorer,
            "score",
            meter.counted("evaluations", Scorer.score, lambda arguments: len(arguments[1])),
        ),
    ]


class Watch:
    """A view that notes when each step is done, and its row."""

    def __init__(self):
        self.ends, self.rows = [], []

    def stepped(self, step, row, lesson):
        """A step is done."""
        self.ends.append(time.perf_counter())
        self.rows.append(row)

    def warn(self, text):
        """Something was skipped."""
        print(f"warning: {text}")

    def __getattr__(self, name):
        return lambda *arguments: None


def settings(options, method, **more):
    """A run's configuration."""
    from resd.config import load_config

    chosen = {
        "method.name": method,
        "model.path": options.model,
        "model.threads": 1,
        "train.steps": options.steps,
        "train.batch_size": BATCH,
        "train.micro_batch_size": BATCH,
        "train.updates_per_batch": 1,
        "evaluation.every": 0,
        "evaluation.at_start": False,
        "evaluation.max_examples": 1,
        "checkpoint.every": 10**6,
        **more,
    }
    return load_config(None, list(chosen.items()))


def ours(config):
    """Seconds of each step after the first, seconds of each phase, counts, and the rows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from resd.api import train
    from resd.models.load import LAB_MODEL

    watch, meter, counts = Watch(), Meter(), Meter()
    place = LAB_MODEL if config.model.path == "lab" else config.model.path
    model_class = AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(place))]
    steps = config.train.steps
    with tempfile.TemporaryDirectory() as folder:
        config.output = Path(folder) / "run"
        # The first step pays for what is made once; the last one ends with the evaluation.
        with replaced(timers(meter)), replaced(counters(counts, model_class)):
            marks = []
            watch.stepped = lambda step, row, lesson: (
                Watch.stepped(watch, step, row, lesson),
                marks.append((Counter(meter.seconds), Counter(counts.calls))),
            )
            train(config, watch)
    times = [b - a for a, b in itertools.pairwise(watch.ends)]
    (seconds, calls), (last_seconds, last_calls) = marks[0], marks[-1]
    n = steps - 1
    phases = {phase: (last_seconds[phase] - seconds[phase]) / n for phase in PHASES}
    dear = {name: (last_calls[name] - calls[name]) / n for name in last_calls}
    return times, phases, dear, watch.rows


def trl(options, folder):
    """Seconds of each step of TRL's SDPOTrainer after the first, and of each phase."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    from resd.models.load import LAB_MODEL

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    place = str(LAB_MODEL) if options.model == "lab" else options.model
    config, world = settings(options, "sdpo"), LabEnvironment()
    rows = [
        {"prompt": list(e.prompt), "privileged_context": world.evaluate(e, "go").feedback}
        for e in world.examples("train")
    ]
    arguments = SDPOConfig(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        num_generations=1,
        max_steps=options.steps,
        max_completion_length=config.rollout.max_new_tokens,
        top_p=config.rollout.top_p,
        distillation_mode="topk_logits",
        distillation_topk=config.method.top_k,
        distillation_add_tail=True,
        distillation_alpha=config.method.alpha,
        include_environment_feedback=True,
        teacher_model_kind="base",
        scale_rewards="none",
        learning_rate=config.train.lr,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10**6,
    )
    ends, marks, meter = [], [], Meter()

    class Ends(TrainerCallback):
        def on_step_end(self, *arguments, **named):
            ends.append(time.perf_counter())
            marks.append(Counter(meter.seconds))

    lengths = []

    def reward(completions, completion_ids, **named):
        lengths.extend(map(len, completion_ids))
        return [0.0] * len(completions)

    trainer = SDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32),
        reward_funcs=reward,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(place),
        callbacks=[Ends()],
    )
    phases = {"generation": "_generate_transformers", "update": "training_step"}
    changes = [
        (SDPOTrainer, name, meter.timed(phase, getattr(SDPOTrainer, name)))
        for phase, name in {**phases, "prompts": "_prepare_training_batch"}.items()
    ]
    with replaced(changes), contextlib.redirect_stdout(None):
        trainer.train()
    spent = {phase: (marks[-1][phase] - marks[0][phase]) / (len(ends) - 1) for phase in marks[-1]}
    times = [b - a for a, b in itertools.pairwise(ends)]
    return times, spent, statistics.mean(lengths)


def measure(options):
    """Run all cases round by round, and print what they cost."""
    half = {"task": f"{__file__}:HalfPass"}
    cases = {
        "sdpo": settings(options, "sdpo"),
        "resd": settings(options, "resd"),
        "grpo": settings(options, "grpo", **half, preset="lab"),
        # The teacher's prompt of TRL shows the feedback alone.
        "sdpo, no trial": settings(options, "sdpo", **{"method.use_trial": False}),
    }
    times = {name: [] for name in [*cases, "trl"]}
    phases, dear, rows = {}, {}, {}
    for _ in range(options.rounds):
        for name, config in cases.items():
            spent, phase, calls, row = ours(config.model_copy(deep=True))
            times[name] += spent
            phases.setdefault(name, []).append(phase)
            dear[name], rows[name] = calls, row
        if options.trl:
            with tempfile.TemporaryDirectory() as folder:
                spent, phase, length = trl(options, folder)
            times["trl"] += spent
            phases.setdefault("trl", []).append(phase)
    median = {name: statistics.median(values) for name, values in times.items() if values}
    for name in median:
        found = [
            f"{phase} {statistics.median(p[phase] for p in phases[name]):.4f}"
            for phase in phases[name][0]
            if any(p[phase] > 5e-5 for p in phases[name])
        ]
        print(f"{name:15} {median[name]:.3f} s a step: {', '.join(found)}")
    for name in cases:
        taught = statistics.mean(row.get("train/taught", 0.0) for row in rows[name][1:])
        length = statistics.mean(row["rollout/length"] for row in rows[name][1:])
        counts = ", ".join(f"{n} {value:.0f}" for n, value in sorted(dear[name].items()))
        print(f"{name:15} taught {taught:.2f}, response {length:.1f} tokens; {counts}")
        work = [sum(p[w] for w in WORK) for p in phases[name]]
        kept = [sum(p.values()) - w for p, w in zip(phases[name], work, strict=True)]
        rest = 1 - statistics.median(work) / statistics.mean(times[name])
        print(
            f"{name:15} bookkeeping {rest:.1%} of a step, of which "
            f"{statistics.median(kept) / statistics.mean(times[name]):.1%} has a name"
        )
    ratios = [("resd", "sdpo", 1.3), ("resd", "grpo", 0.25)]
    if options.trl:
        print(f"trl             response {length:.1f} tokens")
        ratios.insert(0, ("sdpo, no trial", "trl", 0.5))
    for a, b, goal in ratios:
        print(f"{a} / {b}: {median[a] / median[b]:.2f} (goal {goal})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab", help="lab, smol or a directory")
    parser.add_argument("--steps", type=int, default=6, help="a run; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-trl", dest="trl", action="store_false")
    measure(parser.parse_args())
