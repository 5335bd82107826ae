"""Anchors: what they add to the gradient, which they are, and what refuses them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fakes
import pytest
import tiny
import torch
from bad_input import Words
from safetensors.torch import load_file

from resd.backend import Local
from resd.cli import main
from resd.config import AnchorConfig, LoraConfig, TrainConfig, load_config
from resd.engines import Completion
from resd.errors import UserError
from resd.loop.anchor_prompts import GENERAL, anchor_prompts
from resd.loop.anchors import FILE, Anchors, make_anchors
from resd.methods.base import StepReport
from resd.models.batch import response_logits
from resd.models.head import LogitHead
from resd.models.lora import add_adapters
from resd.models.memory import Memory
from resd.runs import read_metrics
from resd.tasks.lab import Dialect, LabEnvironment

ANSWERS = [
    ((5, 6, 7 + i), tuple(range(20 + i, 22 + i + 3 * (i % 4)))) for i in range(9)
]  # 2 to 11 tokens


LIMITS = ("number", "max_new_tokens")


@pytest.fixture
def whole(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def made(student: Any, answers: Any = ANSWERS, seed: int = 0, **over: Any) -> Anchors:
    train = {k: over.pop(k) for k in ("micro_batch_tokens", "chunk_tokens") if k in over}
    settings = AnchorConfig(**{"weight": 1.0, "batch": 5, **over})
    return Anchors(
        answers,
        student,
        settings,
        TrainConfig(**train),
        seed,
        0,
        Local(),
        lambda name: nullcontext(),
    )


def shaken(student: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)


def full_divergence(initial: Any, student: Any, anchors: Anchors, update: int) -> torch.Tensor:
    """KL(initial || student) from all logits of two whole models, a sample at a time."""
    total, tokens = torch.zeros(()), 0
    for sample in anchors.draw(update):
        ids = [sample.prompt_ids], [sample.response_ids]
        with torch.no_grad():
            theirs = response_logits(initial, *ids, 0).log_softmax(-1)
        ours = response_logits(student, *ids, 0).log_softmax(-1)
        total = total + (theirs.exp() * (theirs - ours)).sum()
        tokens += len(sample.response_ids)
    return total / tokens


def gradient(student: Any) -> torch.Tensor:
    found = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    return torch.cat(found)


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, "all-linear", ["q_proj", "lm_head"]])
@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_value_and_gradient_are_those_of_a_frozen_copy_and_all_logits(
    whole: Any, lora: Any, budget: int
) -> None:
    initial, student = copy.deepcopy(whole), whole
    if lora is not None:
        student = add_adapters(student, LoraConfig(rank=4, target_modules=lora)).eval()
    anchors = made(student, weight=3.0, micro_batch_tokens=budget, chunk_tokens=4)
    shaken(student)
    expected = full_divergence(initial, student, anchors, 7)
    (3.0 * expected).backward()
    wanted = gradient(student)
    value = anchors.pull(7)
    found = gradient(student)
    assert value == pytest.approx(float(expected.detach()), rel=1e-4)
    assert value > 0.01
    assert (found - wanted).norm() / wanted.norm() < 1e-4


def test_before_the_first_update_nothing_pulls(whole: Any) -> None:
    anchors = made(whole)
    assert abs(anchors.pull(2)) < 1e-6
    assert gradient(whole).norm() < 1e-4
    assert anchors.pull(1) == 0.0
    assert all(p.grad is None for p in whole.parameters())


def test_a_frozen_head_computes_as_the_model_does(whole: Any) -> None:
    for name in ("logits_scaling", "logit_scale"):
        setattr(whole.config, name, 2.5)
    head = LogitHead(whole)
    frozen, hidden = head.frozen(), torch.randn(3, head.width)
    before = head(hidden).clone()
    shaken(whole)
    assert torch.equal(frozen(hidden), before)
    assert not torch.equal(head(hidden), before)
    with pytest.raises(ValueError, match="whole"):
        LogitHead(whole, whole=True).frozen()


@pytest.mark.parametrize("method", ["resd", "sdpo", "sdpo_ss", "grpo"])
def test_the_optimiser_is_given_the_sum_of_both_gradients(tiny_model: Path, method: str) -> None:
    def step(weight: float) -> tuple[torch.Tensor, dict[str, float]]:
        update = fakes.maker(tiny_model)(method)
        if weight:
            update._anchors = made(update.student, weight=weight)
        shaken(update.student)
        found: list[torch.Tensor] = []
        update.updates = 1
        update.optimizer.step = lambda: found.append(gradient(update.student))  # type: ignore
        report = StepReport()
        update.run(fakes.samples(), report)
        if weight:  # no weight has moved since
            kl = update._anchors.pull(2)  # type: ignore[union-attr]
            assert report.metrics["train/anchor_kl"] == pytest.approx(kl, rel=1e-5)
        return found[0], report.metrics

    (plain, plain_row), (one, row), (two, _) = step(0.0), step(1.0), step(2.0)
    assert (one - plain).norm() > 1e-3
    assert torch.allclose(two - plain, 2 * (one - plain), atol=1e-5)
    assert row["train/anchor_kl"] > 0.01
    assert "train/anchor_kl" not in plain_row
    assert row["train/loss"] == plain_row["train/loss"]
    assert row["train/entropy"] == plain_row["train/entropy"]


def test_the_estimate_of_the_memory_is_what_is_held(whole: Any, tiny_model: Path) -> None:
    answers = [((5, 6, 7 + i), tuple(range(20, 28))) for i in range(6)]
    anchors = made(whole, answers)
    held = sum(t.numel() * t.element_size() for t in anchors._initial.states.values())
    fixed = anchors._initial.head.tensors()
    held += sum(t.numel() * t.element_size() for t in fixed.values())
    words = [("model.path", str(tiny_model))]
    words += [(f"method.anchors.{k}", "6" if k == "number" else "8") for k in LIMITS]
    off = Memory(load_config(None, words)).estimate()
    on = Memory(load_config(None, [*words, ("method.anchors.weight", "1")])).estimate()
    assert {p.name: p.bytes for p in on.kept}["anchors"] == held
    assert "anchors" not in {p.name for p in off.kept}
    assert on.at("loss") >= off.at("loss")


# -- the draw --------------------------------------------------------------------------------------


def test_the_draw_belongs_to_the_seed_and_the_update(whole: Any) -> None:
    one, other = made(whole), made(whole, seed=1)
    drawn = [one.draw(update) for update in range(1, 20)]
    assert drawn == [made(whole).draw(update) for update in range(1, 20)]
    assert drawn != [other.draw(update) for update in range(1, 20)]
    assert len({tuple(batch) for batch in drawn}) > 10
    assert all(len(set(batch)) == 5 for batch in drawn)
    assert len({sample for batch in drawn for sample in batch}) == len(ANSWERS)
    assert len(made(whole, batch=100).draw(1)) == len(ANSWERS)


# -- whole runs ------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    def train(name: str, method: str = "resd", **over: Any) -> Path:
        place = tmp_path / name
        anchors = {"weight": 1.0, "number": 12, "batch": 4, "max_new_tokens": 8}
        settings = {f"method__anchors__{key}": value for key, value in anchors.items()} | over
        words = tiny.arguments(tiny.eventful_settings(tiny_model, place, method, **settings))
        assert main(["train", *words]) == 0
        return place

    return train


def numbers(place: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(place)
    ]


@pytest.mark.parametrize(
    ("method", "over"),
    [("resd", {}), ("sdpo", {"model__lora__rank": 4, "train__lr": 0.05})],
)
def test_a_run_goes_on_bit_for_bit(run: Any, method: str, over: dict[str, Any]) -> None:
    """From the kept answers, and from ones that are made again."""
    once = run("once", method, **over)
    kept = json.loads((once / FILE).read_text())
    assert len(kept["answers"]) == 12
    for name in ("kept", "lost", "damaged") if method == "resd" else ("kept",):
        place = run(name, method, train__steps=2, **over)
        if name == "lost":
            (place / FILE).unlink()
        if name == "damaged":
            (place / FILE).write_text((once / FILE).read_text()[:-40])
        assert main(["train", "--resume", str(place), "--train.steps", "4"]) == 0
        assert json.loads((place / FILE).read_text()) == kept
        assert numbers(place) == numbers(once)
        a, b = (load_file(p / "final" / "model.safetensors") for p in (once, place))
        assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [row["train/anchor_kl"] for row in read_metrics(once) if "train/anchor_kl" in row]
    assert max(rows) > 1e-5


def test_without_weight_a_run_is_as_if_there_were_none(run: Any, tmp_path: Path) -> None:
    def final(place: Path) -> Any:
        return load_file(place / "final" / "model.safetensors")

    plain = run("plain", method__anchors__weight=0.0)
    other = run("other", method__anchors__weight=0.0, method__anchors__batch=2)
    pulled = run("pulled")
    assert not (plain / FILE).exists()
    assert numbers(plain) == numbers(other)
    assert not any("anchor" in key for row in read_metrics(plain) for key in row)
    assert all(torch.equal(t, final(other)[key]) for key, t in final(plain).items())
    assert not all(torch.equal(t, final(pulled)[key]) for key, t in final(plain).items())


def test_kept_answers_are_not_sampled_again(whole: Any, tmp_path: Path) -> None:
    asked: list[Any] = []

    class Sampler:
        def generate(self, requests: Any, what: str) -> list[Completion]:
            asked.extend(requests)
            ids = [(r.seed % 300, 3) if r.prompt_ids != (9,) else () for r in requests]
            return [Completion(i, "", "stop") for i in ids]

        def rest(self) -> None:
            asked.append("rest")

    class Student:
        model, whole_logits = whole, False

    def make(prompts: Any) -> Any:
        config = load_config(None, [("method.anchors.weight", "1")])
        kind: Any = Sampler(), Student()
        return make_anchors(
            config, prompts, tmp_path, *kind, 0, Local(), lambda name: nullcontext()
        )

    first = make([(1, 2), (9,), (3, 4)])
    assert asked.pop() == "rest"
    assert len(first.draw(1)) == 2  # an empty answer teaches nothing
    seeds = {r.prompt_ids: r.seed for r in asked}
    asked.clear()
    assert sorted(make([]).draw(1), key=str) == sorted(first.draw(1), key=str)
    assert not asked
    (tmp_path / FILE).unlink()
    make([(3, 4)])
    assert asked[0].seed == seeds[3, 4]  # whatever else is asked
    Student.whole_logits = True
    with pytest.raises(UserError, match=r"set method\.anchors\.weight to 0"):
        make([(1, 2)])


# -- the prompts -----------------------------------------------------------------------------------


def ask(tmp_path: Path, environment: Any = None, context: int = 4000, **over: Any) -> list[str]:
    """What is asked, as text: a token is a character."""

    class Chat:
        def encode(self, messages: Any) -> list[int]:
            return [ord(c) for m in messages for c in f"{m['role'][0]}{m['content']}"]

    settings = {"weight": 1, **over}
    words = [("seed", str(settings.pop("seed", 0)))]
    words += [(f"method.anchors.{key}", str(value)) for key, value in settings.items()]
    chat: Any = Chat()
    found = anchor_prompts(load_config(None, words), environment, chat, context)
    return ["".join(map(chr, ids)) for ids in found]


def test_every_form_of_a_prompt(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text('one\n\n["two"]\none\n')
    assert set(ask(tmp_path, prompts=plain)) == {"uone", 'u["two"]'}
    turns = [{"role": r, "content": r} for r in ("system", "user", "assistant")]
    lines = ["one", {"prompt": "two"}, {"messages": turns}, [*turns, {**turns[1], "content": "x"}]]
    rows = tmp_path / "a.jsonl"
    rows.write_text("\n".join(map(json.dumps, lines)))
    expected = {"uone", "utwo", "ssystemuuser", "ssystemuuseraassistantux"}
    assert set(ask(tmp_path, prompts=rows)) == expected


def test_the_task_s_prompts_come_first_and_then_the_general_ones(tmp_path: Path) -> None:
    class World:
        def anchors(self) -> list[Any]:
            return ["mine", [{"role": "user", "content": "and mine"}]]

    shipped = {f"u{line}" for line in GENERAL.read_text().splitlines()}
    assert len(shipped) >= 200
    assert set(ask(tmp_path, World())) == {"umine", "uand mine"}
    assert set(ask(tmp_path, World(), prompts="task")) == {"umine", "uand mine"}
    assert set(ask(tmp_path, World(), prompts="general")) == shipped
    assert set(ask(tmp_path, object())) == shipped
    assert ask(tmp_path, object(), weight=0) == []


def test_as_many_as_fit_are_drawn_by_the_seed(tmp_path: Path) -> None:
    few = ask(tmp_path, number=20)
    assert len(few) == 20
    assert few == ask(tmp_path, number=20)
    assert few != ask(tmp_path, number=20, seed=1)
    assert few == ask(tmp_path, number=30)[:20]
    short = ask(tmp_path, max_prompt_tokens=30)
    assert short == ask(tmp_path, context=286)
    assert 5 < len(short) < 100
    assert max(map(len, short)) <= 30


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"prompts": "task"}, "has no anchors()"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"prompts": "bad.jsonl"}, "bad.jsonl, line 2 is no JSON"),
        ({"prompts": "bare.jsonl"}, "bare.jsonl, line 1 has neither prompt nor messages"),
        ({"prompts": "roles.jsonl"}, "roles.jsonl, line 1: role must be"),
        ({"prompts": "empty.txt"}, "empty.txt holds no prompt"),
        ({"prompts": "bytes.txt"}, "bytes.txt is no text"),
        ({"max_prompt_tokens": 2}, "none of 212 fits into 2 tokens"),
        ({"max_new_tokens": 5000}, "leaves no room for a prompt"),
        ({"weight": -1.0}, "greater than or equal to 0"),
        ({"batch": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    over: dict[str, Any],
    says: str,
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('"one"\n{"prompt": \n')
    Path("bare.jsonl").write_text('{"text": "one"}\n')
    Path("roles.jsonl").write_text('[{"role": "judge", "content": "a"}]\n')
    Path("empty.txt").write_text("\n\n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\n")
    settings = {"weight": 1.0, **over}
    line = refused(**{f"method__anchors__{key}": value for key, value in settings.items()})
    assert says in line


def test_a_task_whose_anchors_fail_is_refused(
    refused: Callable[..., str], env: Callable[[str], str]
) -> None:
    def line(body: str) -> str:
        bad = f"\nclass Env(Env):\n    def anchors(self):\n        {body}\n"
        return refused(method__anchors__weight=1.0, task=env(bad))

    assert "anchors() failed: ValueError: no" in line("raise ValueError('no')")
    assert "anchors()[1]: prompt must be" in line("return ['one', 2]")
    assert "anchors() holds no prompt" in line("return []")


def test_a_relative_file_is_found_from_anywhere(
    train_words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("asked.txt").write_text("set lamp\nset door\n")
    words = train_words(
        method__anchors__weight=1.0, method__anchors__prompts="asked.txt", train__steps=1
    )
    assert main(words) == 0
    assert str(tmp_path / "asked.txt") in (tmp_path / "run" / "config.toml").read_text()
    assert len(json.loads((tmp_path / "run" / FILE).read_text())["answers"]) == 2


def test_the_lab_s_prompts_are_other_dialects_and_other_skills() -> None:
    world = LabEnvironment(3)
    found = world.anchors()
    requests = {e.prompt[0]["content"] for s in ("train", "test") for e in world.examples(s)}  # type: ignore[arg-type]
    texts = [prompt[0]["content"] for prompt in found]
    assert len(found) == 512
    assert found == LabEnvironment(3).anchors()
    assert not any(set(text.splitlines()) <= requests for text in texts)
    for kind in ("notes:", "reflect", "curate", "tried:"):
        assert sum(kind in text for text in texts) > 50, kind
    assert all(prompt[-1]["role"] == "user" for prompt in found)


def test_no_prompt_of_the_lab_is_a_bare_request_of_any_world() -> None:
    bare = re.compile(r"set the \w+ in the \w+ to \d|in \w+ house|levels are shifted")
    texts = [prompt[0]["content"] for prompt in LabEnvironment(3).anchors()]
    lines = [text.strip().splitlines() for text in texts]
    assert any(bare.fullmatch(line) for text in lines for line in text)  # it knows a request
    assert not [text for text in lines if all(bare.fullmatch(line) for line in text)]


def test_the_lab_s_prompts_hold_no_dialect_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is one of the pretraining dialects is left out of them, wherever it stands."""
    from resd.lab_base.corpus import Corpus
    from resd.lab_base.gates import HeldOut

    asked: list[Dialect] = []
    for kind in (Corpus, HeldOut):
        original = kind.dialect

        def dialect(self: Any, original: Any = original) -> Dialect:
            asked.append(original(self))
            return asked[-1]

        monkeypatch.setattr(kind, "dialect", dialect)
    world = LabEnvironment(0)
    plain = world.anchors()
    world.dialect = asked[0]
    assert world.anchors() != plain
    asked.clear()
    world.dialect = Dialect.numbered(1)
    groups = world.retention()
    assert world.dialect in asked  # drawn, and drawn again
    truth = [e.data["truth"][0] for e in groups["playbook"]]
    assert world.dialect not in truth


def test_what_fails_in_a_chat_template_is_said(tmp_path: Path) -> None:
    class Broken:
        def encode(self, messages: Any) -> list[int]:
            raise TypeError("no system\nallowed")

    chat: Any = Broken()
    environment: Any = object()
    config = load_config(None, [("method.anchors.weight", "1")])
    with pytest.raises(UserError, match="fails on one: no system allowed"):
        anchor_prompts(config, environment, chat, 1000)
