"""Weights that stay in bfloat16: refused for plain AdamW, or rounded at random."""

import sys
from types import ModuleType

import pytest
import tiny
import torch

from resd.config import TrainConfig, load_config
from resd.errors import UserError
from resd.loop.optimizer import check_precision, make_optimizer


def config(tiny_model, tmp_path, **over):
    return load_config(None, list(tiny.settings(tiny_model, tmp_path / "run", **over).items()))


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_narrow_weights_are_refused_for_full_training(tiny_model, tmp_path, dtype):
    with pytest.raises(UserError, match=r"model\.compute_dtype bfloat16"):
        check_precision(config(tiny_model, tmp_path, model__dtype=dtype))


def test_narrow_weights_under_adapters_are_fine(tiny_model, tmp_path):
    check_precision(config(tiny_model, tmp_path, model__dtype="bfloat16", model__lora__rank=2))
    check_precision(config(tiny_model, tmp_path, model__compute_dtype="bfloat16"))


def test_without_torchao_the_error_says_what_to_install(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("resd.loop.optimizer.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"resd\[torchao\]"):
        check_precision(config(tiny_model, tmp_path, train__optimizer="adamw_stochastic"))


def test_with_torchao_or_float32_nothing_is_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("resd.loop.optimizer.find_spec", lambda name: name)
    narrow = {"model__dtype": "bfloat16", "train__optimizer": "adamw_stochastic"}
    check_precision(config(tiny_model, tmp_path, **narrow))
    check_precision(config(tiny_model, tmp_path, model__dtype="float32"))


@pytest.mark.parametrize("name", ["adamw", "adamw_stochastic"])
def test_the_settings_reach_the_optimiser(name, monkeypatch):
    """Torchao's class is a private one that may not be there: a stand-in takes what it takes."""

    class Rounding(torch.optim.AdamW):
        def __init__(self, weights, *, bf16_stochastic_round=False, **settings):
            super().__init__(weights, **settings)
            self.rounds = bf16_stochastic_round

    stand_in = ModuleType("torchao.optim")
    stand_in._AdamW = Rounding
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.optim", stand_in)
    weight = torch.nn.Parameter(torch.zeros(2))
    settings = TrainConfig(lr=2e-5, weight_decay=0.25, optimizer=name)
    optimizer = make_optimizer([weight], settings)
    (group,) = optimizer.param_groups
    assert group["params"] == [weight]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (2e-5, 0.25, (0.9, 0.999))
    assert getattr(optimizer, "rounds", False) is (name == "adamw_stochastic")


@pytest.mark.slow
def test_stochastic_rounding_moves_bfloat16_weights_by_the_learning_rate():
    pytest.importorskip("torchao")
    moved = {}
    for name in ("adamw", "adamw_stochastic"):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(64, 64).bfloat16())
        start = weight.detach().clone()
        settings = TrainConfig(lr=1e-5, weight_decay=0.0, optimizer=name)
        optimizer = make_optimizer([weight], settings)
        for _ in range(20):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[name] = float((start - weight).float().mean())
    assert moved["adamw_stochastic"] == pytest.approx(20 * 1e-5, rel=0.2)
    assert moved["adamw"] < 0.2 * 20 * 1e-5
