"""Every preset is valid for every method, names a real task, and says what the paper says."""

from __future__ import annotations

from typing import Any

import pytest

from resd.config import METHODS, DistillConfig, ResdConfig, RunConfig, load_config, preset_names
from resd.tasks.registry import load_environment, load_examples

PAPER = {  # method.md section 5: alpha, ratio_max, entries, concise, weights, teacher's rate
    "manufactoria-paper": (1.0, 5.0, 200, "prioritized", False, 1e-4),
    "bouncing-easy-paper": (0.5, None, 120, "staleness", True, 1e-4),
    "bouncing-medium-paper": (1.0, None, 150, "prioritized", False, 1e-2),
    "finer-paper": (0.5, None, 120, "staleness", True, 1e-4),
}
TASKS = ("manufactoria", "bouncing", "finer")


def preset(name: str, method: str = "resd") -> RunConfig:
    return load_config(None, [("preset", name), ("method.name", method)])


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("method", METHODS)
def test_a_preset_is_valid_for_every_method(name: str, method: str) -> None:
    config = preset(name, method)
    assert config.method.name == method
    limit = config.model.max_context
    if isinstance(config.method, DistillConfig) and limit is not None:
        assert config.method.max_teacher_tokens + config.rollout.max_new_tokens <= limit


@pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith(TASKS)])
def test_a_preset_s_task_takes_its_arguments(name: str) -> None:
    config = preset(name)
    args: dict[str, Any] = dict(config.task_args)
    if config.task == "finer":
        pytest.skip("its data is the user's; test_finer does this")
    environment = load_environment(config.task, args)
    assert len(load_examples(environment, "test", config.task)) > 50


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_settings(name: str) -> None:
    config, method = preset(name), preset(name).method
    assert isinstance(method, ResdConfig)
    entries = method.playbook.max_entries
    weights = method.success_weights is not None
    found = (method.alpha, method.ratio_max, entries, method.playbook.concise, weights)
    assert (*found, method.teacher.rate) == PAPER[name]
    assert (method.top_k, method.ratio_min, method.teacher.kind) == (100, 0.2, "ema")
    train = config.train
    assert (train.lr, train.warmup_steps, train.batch_size) == (1e-6, 10, 32)
    assert (train.inner_iterations, method.rollouts) == (4, 1)
    limits = (method.max_teacher_tokens, config.rollout.max_new_tokens)
    assert limits == ((58368, 25600) if "bouncing" in name else (49152, 20480))
    evaluation = config.evaluation
    assert (evaluation.samples, evaluation.temperature, evaluation.top_p) == (4, 0.6, 0.95)
    big = "Qwen/Qwen3-30B-A3B-Thinking-2507"
    small = "Qwen/Qwen3-4B-Thinking-2507"
    assert config.model.path == (big if "medium" in name else small)


def test_what_the_released_scripts_set() -> None:
    method = preset("manufactoria-released").method
    assert isinstance(method, ResdConfig)
    assert (method.playbook.concise, method.ratio_max) == ("staleness", None)
    assert method.success_weights is not None
    assert method.teacher.kind == "frozen"
    assert preset("finer-released").train.lr == 1e-5
