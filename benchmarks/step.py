"""What a training step costs: medians, ratios side by side, bookkeeping, counts of what is dear.

python benchmarks/step.py [--steps 6] [--rounds 3] [--tokens N] [--model lab] [--without-trl]

Cases are interleaved round by round (machines are shared and noisy): compare ratios of one
invocation, by processor time where others use the machine. Every case is the lab's world with one
update a batch, 16 prompts, one thread, and a learning rate that leaves the model as it is:

- sdpo, resd: the lab as it is; its base model passes nothing, so every sample teaches.
- grpo: 8 responses a prompt, half of which pass by lot, so that every group has something to say.
- trl: TRL's SDPOTrainer on the same model, prompts and lengths as `sdpo`.

The lab's responses have eight tokens and its reflections five times as many, which no real task
has. So every response is drawn and learnt from up to --tokens, beyond the end of what it says.

Bookkeeping is what is neither generation nor update nor environment.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
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
        "resd.context.teacher_prompt:PromptBuilder._fit",
        "resd.models.chat:ChatFormat.encode",
    ],
    "parsing": [f"resd.methods.resd:parse_{n}" for n in ("reflection", "curation")],
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
        outcome = super().evaluate(example, response)
        lot = hashlib.blake2b(f"{example.id}/{response}".encode(errors="replace")).digest()[0]
        return replace(outcome, reward=float(lot % 2), passed=bool(lot % 2), cases_passed=lot % 2)


class Meter:
    """Seconds of functions, each without those that it calls, and how often they are called."""

    def __init__(self):
        self.seconds, self.calls, self._inside = Counter(), Counter(), []

    def timed(self, phase, function):
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

    def counted(self, name, function, size):
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

    from resd.engines.hf import HFEngine
    from resd.models.line_tokens import LineTokens
    from resd.tasks.scoring import Scorer

    base = PreTrainedTokenizerBase

    def one(arguments):
        return 1

    def each(arguments):
        return len(arguments[1])

    places = [
        (base, "__call__", "tokenizer calls", one),
        (LineTokens, "_read", "tokenizer calls", one),
        (base, "apply_chat_template", "chat templates", one),
        (model_class, "forward", "forwards", one),
        (HFEngine, "generate", "generated", each),
        (Scorer, "score", "evaluations", each),
    ]
    return [
        (owner, name, meter.counted(what, getattr(owner, name), size))
        for owner, name, what, size in places
    ]


def now():
    """Seconds by the clock and of this process."""
    return time.perf_counter(), time.process_time()


def between(ends):
    """Seconds from each end to the next, by the clock and of this process."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)]


def endless():
    """Replacements: a response goes on to its limit; its text is what stands before its end."""
    from resd.engines.hf import HFEngine
    from resd.loop.rollouts import Sampler

    respond = Sampler.respond

    def without_end(self, *arguments, **named):
        engine = self.engine
        assert isinstance(engine, HFEngine), "--tokens knows no other engine"
        ends, generate = set(engine._reader.end_ids), engine.generate

        def to_the_limit(requests, on_done=None):  # threads grade when all is there
            with replaced([(engine._reader, "end_ids", [10**6])]):
                return [said(*pair) for pair in zip(requests, generate(requests), strict=True)]

        def said(request, completion):
            ids = [*itertools.takewhile(lambda i: i not in ends, completion.token_ids)]
            read = engine._reader._reader.read(request.prompt_ids, ids, True)
            return replace(completion, text=read.text, answer=read.answer)

        with replaced([(engine, "generate", to_the_limit)]):
            return respond(self, *arguments, **named)

    return [(Sampler, "respond", without_end)]


class Watch:
    """A view that notes when each step is done, its row, and what the meters show then."""

    def __init__(self, *meters):
        self.ends, self.rows, self.marks, self._meters = [], [], [], meters

    def stepped(self, step, row, lesson):
        self.ends.append(now())
        self.rows.append(row)
        self.marks.append([Counter(meter) for meter in self._meters])

    def warn(self, text):
        print(f"warning: {text}")

    def __getattr__(self, name):
        return lambda *arguments: None


def settings(options, method, **more):
    from resd.config import load_config

    chosen = {
        "method.name": method,
        "model.path": options.model,
        "model.threads": 1,
        **({"rollout.max_new_tokens": options.tokens} if options.tokens else {}),
        "train.steps": options.steps,
        "train.batch_size": BATCH,
        "train.micro_batch_tokens": 10**9,
        "train.updates_per_batch": 1,
        "train.lr": 1e-9,
        "evaluation.every": 0,
        "evaluation.at_start": False,
        "evaluation.max_examples": 1,
        "checkpoint.every": 10**6,
        **more,
    }
    return load_config(None, list(chosen.items()))


def ours(config, tokens):
    """Seconds of each step after the first, seconds of each phase, counts, and the rows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from resd.api import start_run
    from resd.models.load import LAB_MODEL

    meter, counts = Meter(), Meter()
    watch = Watch(meter.seconds, counts.calls)
    place = LAB_MODEL if config.model.path == "lab" else config.model.path
    model_class = AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(place))]
    with tempfile.TemporaryDirectory() as folder:
        config.output = Path(folder) / "run"
        changes = [*timers(meter), *(endless() if tokens else ())]
        with replaced(changes), replaced(counters(counts, model_class)):
            start_run(config, watch)
    steps = [
        {phase: after[phase] - before[phase] for phase in PHASES}
        for (before, _), (after, _) in itertools.pairwise(watch.marks)
    ]
    (_, before), (_, after) = watch.marks[0], watch.marks[-1]
    dear = {name: (after[name] - before[name]) / len(steps) for name in after}
    return between(watch.ends), steps, dear, watch.rows


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
    tokenizer = AutoTokenizer.from_pretrained(place)
    arguments = SDPOConfig(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        num_generations=1,
        max_steps=options.steps,
        max_completion_length=config.rollout.max_new_tokens,
        top_p=config.rollout.top_p,
        generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]} if options.tokens else None,
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
            ends.append(now())
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
        processing_class=tokenizer,
        callbacks=[Ends()],
    )
    phases = {"generation": "_generate_transformers", "update": "training_step"}
    changes = [
        (SDPOTrainer, name, meter.timed(phase, getattr(SDPOTrainer, name)))
        for phase, name in {**phases, "prompts": "_prepare_training_batch"}.items()
    ]
    with replaced(changes), contextlib.redirect_stdout(None):
        trainer.train()
    steps = [{phase: b[phase] - a[phase] for phase in b} for a, b in itertools.pairwise(marks)]
    return between(ends), steps, statistics.mean(lengths)


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
    times = {name: [] for name in [*cases, *(["trl"] if options.trl else [])]}
    phases = {name: [] for name in times}
    dear, rows = {}, {}
    for _ in range(options.rounds):
        for name in times:
            if name == "trl":
                with tempfile.TemporaryDirectory() as folder:
                    spent, steps, length = trl(options, folder)
            else:
                config = cases[name].model_copy(deep=True)
                spent, steps, dear[name], rows[name] = ours(config, options.tokens)
            times[name] += spent
            phases[name] += steps
    wall = {name: statistics.median(t for t, _ in times[name]) for name in times}
    own = {name: statistics.median(t for _, t in times[name]) for name in times}
    for name in times:
        every = {
            phase: statistics.median(p[phase] for p in phases[name]) for phase in phases[name][-1]
        }
        shown = ", ".join(f"{phase} {1000 * s:.1f}" for phase, s in every.items() if s > 5e-5)
        ms = f"{1000 * wall[name]:.0f} ms a step ({1000 * own[name]:.0f} of its own)"
        print(f"{name}: {ms}: {shown}")
    for name in cases:
        taught = statistics.mean(row.get("train/taught", 0.0) for row in rows[name][1:])
        written = statistics.mean(row["rollout/length"] for row in rows[name][1:])
        counts = ", ".join(f"{n} {value:.0f}" for n, value in sorted(dear[name].items()))
        rest, named = [], []
        for (took, _), p in zip(times[name], phases[name], strict=True):
            work = sum(p[phase] for phase in WORK)
            rest.append((took - work) / took)
            named.append((sum(p.values()) - work) / took)
        print(
            f"{name}: bookkeeping {statistics.median(rest):.1%} of a step "
            f"({statistics.median(named):.1%} has a name; goal 2 %); taught {taught:.2f}, "
            f"response {written:.1f} tokens; {counts}"
        )
    ratios = [("resd", "sdpo", 1.3), ("resd", "grpo", 0.25)]
    if options.trl:
        print(f"trl: response {length:.1f} tokens")
        ratios.insert(0, ("sdpo, no trial", "trl", 0.5))
    for a, b, goal in ratios:
        ratio = f"{wall[a] / wall[b]:.2f}, by processor time {own[a] / own[b]:.2f}"
        print(f"{a} / {b}: {ratio} (goal {goal})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab", help="lab or a directory")
    parser.add_argument("--steps", type=int, default=6, help="a run; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="of a response; 0: to its end")
    parser.add_argument("--without-trl", dest="trl", action="store_false")
    measure(parser.parse_args())
