"""Where settings come from, what they are by default, and that they survive their own file."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from resd.config import (
    METHODS,
    GrpoConfig,
    ResdConfig,
    RunConfig,
    SdpoConfig,
    SdpoSsConfig,
    load_config,
    preset_names,
    read_toml,
    validate,
)
from resd.config import load as load_module
from resd.context import ContextBudgets, PlaybookConfig
from resd.errors import UserError
from resd.runs.config_file import config_text, read_config

NAMES = sorted(METHODS)


# -- defaults -------------------------------------------------------------------------------------


def test_class_defaults_are_the_papers() -> None:
    """method.md section 5, the line "Shared", and section 1, 2 and 4 (the paper's Appendix G).

    Whoever changes a class default must change the paper first; other values belong in a preset.
    """
    run, resd = RunConfig(), ResdConfig()
    assert run.train.lr == 1e-6
    assert run.train.warmup_steps == 10
    assert run.train.batch_size == 32
    assert run.train.inner_iterations == 4
    assert run.train.updates_per_batch == 1
    assert run.train.steps is None  # one pass
    assert (run.rollout.temperature, run.rollout.top_p) == (1.0, 0.95)
    assert run.rollout.thinking is True
    assert (run.evaluation.samples, run.evaluation.temperature) == (4, 0.6)
    assert run.evaluation.top_p == 0.95
    for method in (resd, SdpoConfig(), SdpoSsConfig()):
        assert method.rollouts == 1
        assert method.top_k == 100
        assert method.tail is True
        assert (method.ratio_min, method.ratio_max) == (0.2, None)
        assert method.aggregation == "sample_mean"
        assert method.importance_cap == 2.0
        assert method.success_weights is None
        assert (method.teacher.kind, method.teacher.rate) == ("ema", 1e-4)
    assert (resd.use_reflection, resd.use_playbook, resd.use_solutions) == (True, True, True)
    assert resd.reflector == "student"
    book = resd.playbook
    assert book.concise == "staleness"
    assert book.concise_every == 4
    assert book.admission == "immediate"
    assert 120 <= book.max_entries <= 200
    assert GrpoConfig().rollouts == 8
    assert isinstance(run.method, ResdConfig)


# Default, the least and the most that may be, and what may not be.
PLAYBOOK: dict[str, tuple[float, list[float], list[float]]] = {
    "max_entries": (150, [1], [0]),
    "max_tokens": (8192, [16], [15]),
    "max_entry_chars": (1000, [16], [15]),
    "concise_every": (4, [1], [0]),
    "confirmations": (2, [1], [0]),
    "candidate_patience": (32, [1], [0]),
    "merge_similarity": (0.95, [0.01, 1], [0, 1.01]),
    "max_changes_per_output": (2, [0], [-1]),
    "max_changes_per_update": (2, [0], [-1]),
    "max_harmful_per_output": (4, [0], [-1]),
}


@pytest.mark.parametrize("name", PLAYBOOK)
def test_the_numbers_of_the_playbook_and_their_bounds(name: str) -> None:
    default, may, may_not = PLAYBOOK[name]
    assert getattr(PlaybookConfig(), name) == default
    for value in may:
        assert getattr(PlaybookConfig(**{name: value}), name) == value
    for value in may_not:
        with pytest.raises(ValidationError):
            PlaybookConfig(**{name: value})


def test_a_playbook_is_add_only_by_its_operations() -> None:
    assert PlaybookConfig().add_only is False
    assert PlaybookConfig(operations="add").add_only is True


def test_the_budgets_of_a_prompt_and_their_bounds() -> None:
    budgets = {"playbook": 8192, "trial": 8192, "feedback": 4096}
    assert ContextBudgets().model_dump() == {**budgets, "reflection": 2048, "solution": 8192}
    for name in ContextBudgets.model_fields:
        assert getattr(ContextBudgets(**{name: 0}), name) == 0
        with pytest.raises(ValidationError):
            ContextBudgets(**{name: -1})


# -- descriptions ---------------------------------------------------------------------------------


def models(part: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield part
    for field in part.model_fields.values():
        for option in flat(field.annotation):
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from models(option)


def flat(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from flat(inner)


def test_every_setting_has_a_description() -> None:
    parts = set(models(RunConfig))
    assert parts > {*METHODS.values(), PlaybookConfig}
    missing = [
        f"{part.__name__}.{name}"
        for part in parts
        for name, field in part.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert missing == []


def test_no_setting_accepts_unknown_keys() -> None:
    assert {
        p.__name__ for p in models(RunConfig) if p.model_config.get("extra") != "forbid"
    } == set()


# -- where values come from -----------------------------------------------------------------------


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preset 'p' of our own."""
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "p.toml").write_text(
        """
        task = "lab"
        model.path = "m"
        train = { lr = 1.0, batch_size = 2, steps = 3, warmup_steps = 4 }
        method = { name = "resd", alpha = 0.25, playbook = { max_entries = 7 } }
        by_method.resd.train.batch_size = 9
        by_method.grpo = { train = { lr = 5.0 }, method = { rollouts = 3 } }
        """
    )
    monkeypatch.setattr(load_module.resources, "files", lambda package: tmp_path)
    return tmp_path


def file(folder: Path, text: str) -> Path:
    path = folder / "user.toml"
    path.write_text(text)
    return path


def test_default_then_preset_then_file_then_command_line(presets: Path) -> None:
    user = file(presets, 'preset = "p"\n[train]\nsteps = 30\nwarmup_steps = 40')
    config = load_config(user, [("train.warmup_steps", 400)])
    assert config.train.inner_iterations == 4  # default
    assert config.train.lr == 1.0  # preset
    assert config.train.batch_size == 9  # preset, for this method
    assert config.train.steps == 30  # file
    assert config.train.warmup_steps == 400  # command line


def test_tables_merge_key_by_key(presets: Path) -> None:
    user = file(presets, 'preset = "p"\n[method.playbook]\nmax_tokens = 99')
    method = load_config(user).method
    assert isinstance(method, ResdConfig)
    assert (method.alpha, method.playbook.max_entries, method.playbook.max_tokens) == (0.25, 7, 99)


def test_a_method_gets_its_own_tuned_settings_and_no_other_methods(presets: Path) -> None:
    config = load_config(None, [("preset", "p"), ("method.name", "grpo")])
    assert isinstance(config.method, GrpoConfig)
    assert (config.method.rollouts, config.train.lr, config.train.batch_size) == (3, 5.0, 2)
    config = load_config(None, [("preset", "p"), ("method.name", "sdpo")])
    assert isinstance(config.method, SdpoConfig)
    assert (config.method.alpha, config.train.lr) == (0.5, 1.0)


def test_the_users_value_beats_the_tuned_one(presets: Path) -> None:
    overrides = [("preset", "p"), ("method.name", "grpo"), ("train.lr", 6.0)]
    assert load_config(None, overrides).train.lr == 6.0


def test_a_preset_may_be_named_on_the_command_line_over_a_file(presets: Path) -> None:
    assert load_config(file(presets, "seed = 3"), [("preset", "p")]).train.lr == 1.0


def test_a_method_table_without_a_name_is_resd(presets: Path) -> None:
    user = file(presets, '[model]\npath = "m"\n[method]\nalpha = 0.75')
    method = load_config(user).method
    assert isinstance(method, ResdConfig)
    assert method.alpha == 0.75


def test_none_in_a_file_is_none(presets: Path) -> None:
    text = 'preset = "p"\n[method]\ntop_k = "none"\n[model]\nmax_context = "none"'
    config = load_config(file(presets, text))
    assert isinstance(config.method, ResdConfig)
    assert config.method.top_k is None
    assert config.model.max_context is None


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("method", NAMES)
def test_every_preset_is_valid_for_every_method(preset: str, method: str) -> None:
    overrides = [("preset", preset), ("method.name", method), ("model.path", "m")]
    assert load_config(None, overrides).method.name == method


def test_without_anything_it_is_the_lab() -> None:
    config = load_config()
    assert (config.preset, config.task, config.method.name) == ("lab", "lab", "resd")


# -- a run's own file -----------------------------------------------------------------------------


def round_trip(config: RunConfig, place: Path) -> RunConfig:
    (place / "config.toml").write_text(config_text(config))
    return read_config(place)


@pytest.mark.parametrize("method", NAMES)
def test_a_run_reads_back_its_configuration(method: str, tmp_path: Path) -> None:
    config = load_config(None, [("method.name", method), ("task_args.x", [1, {"y": 0.1}])])
    assert round_trip(config, tmp_path) == config


@pytest.mark.parametrize("method", NAMES)
def test_settings_that_are_none_stay_none(method: str, tmp_path: Path) -> None:
    """Every setting that may be None, set to None: also where the default is a value."""
    values: dict[str, Any] = {"model": {"path": "m"}, "method": {"name": method}}
    may_be_none = [n for n, f in METHODS[method].model_fields.items() if type(None) in flat_set(f)]
    values["method"] |= dict.fromkeys(may_be_none)
    values["task_args"] = {"nothing": None, "list": [None, 1]}
    config = validate(values, "here")
    back = round_trip(config, tmp_path)
    assert back == config
    assert all(getattr(back.method, name) is None for name in may_be_none)
    assert back.task_args == {"nothing": None, "list": [None, 1]}


def flat_set(field: Any) -> set[Any]:
    return set(flat(field.annotation))


def test_the_file_of_a_run_can_start_another(tmp_path: Path) -> None:
    config = load_config(None, [("method.top_k", None), ("model.lora.rank", 3)])
    (tmp_path / "config.toml").write_text(config_text(config))
    assert load_config(tmp_path / "config.toml") == config


def test_numbers_keep_every_bit(tmp_path: Path) -> None:
    lr = 0.1 + 0.2
    config = load_config(None, [("train.lr", lr)])
    assert round_trip(config, tmp_path).train.lr == lr


def test_toml_with_a_byte_order_mark_or_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b'\xef\xbb\xbfseed = 3\r\ntask = "lab"\r\n')
    assert read_toml(path) == {"seed": 3, "task": "lab"}


# -- what is refused, beside test_bad_input -------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grpo": 3}, ["unknown key grpo"]),
        ({"resd": {}}, ["unknown key resd"]),
        ({"method": {"resd": 1}}, ["unknown key method.resd", "alpha"]),
        ({"method": {"playbook": {"size": 1}}}, ["unknown key method.playbook.size", "max_tokens"]),
        ({"method": {"name": "grpo", "alpha": 1}}, ["unknown key method.alpha", "clip_low"]),
        ({"method": {"name": "ppo"}}, ["unknown method 'ppo'", "sdpo_ss"]),
        ({"method": {"name": 3}}, ["unknown method 3"]),
        ({"method": "grpo"}, ["--method.name grpo"]),
        ({"method": [1]}, ["method", "table"]),
        ({"model": {"lora": {"dim": 1}}}, ["unknown key model.lora.dim", "rank"]),
        ({"model": {"lora": 3}}, ["model.lora"]),
        ({"train": 3}, ["train"]),
        ({"method": {"success_weights": [-1, 1]}}, ["method.success_weights.0"]),
        ({"method": {"success_weights": [float("nan"), 1]}}, ["method.success_weights.0"]),
        ({"method": {"success_weights": [1]}}, ["method.success_weights"]),
        ({"method": {"playbook": {"merge_similarity": float("nan")}}}, ["merge_similarity"]),
        ({"seed": 2**63}, ["seed"]),
        ({"train": {"lr": float("inf")}}, ["train.lr"]),
        ({"method": {"ratio_min": 2.0, "ratio_max": 1.0}}, ["ratio_min 2.0 is above ratio_max"]),
    ],
)
def test_refusals_are_one_line_that_names_the_key(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        validate({"model": {"path": "m"}, **values}, "in f.toml")
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    assert "f.toml" in text


def test_a_preset_s_threads_are_for_its_own_task_alone() -> None:
    def mode(*over: tuple[str, Any]) -> str:
        return load_config(None, [("preset", "lab"), *over]).rollout.env_mode

    assert mode() == "thread"
    assert mode(("task", "mine.py:Task")) == "process"
    assert mode(("task", "mine.py:Task"), ("rollout.env_mode", "thread")) == "thread"
    stream = [{"name": "a"}, {"name": "b", "task": "mine.py:Task"}]
    assert mode(("stream", stream)) == "process"
    assert mode(("stream", stream[:1])) == "thread"
