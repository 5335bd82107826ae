"""Every cell of the table in docs/models.md, executed on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import ARCHITECTURES, build

from resd.config import LoraConfig, ModelConfig
from resd.engines import HFEngine, Request, Sampling
from resd.errors import UserError
from resd.models.batch import response_logits
from resd.models.load import load_model, load_tokenizer
from resd.models.save import save_model, verify_saved

DOC = Path(__file__).parents[1] / "docs" / "models.md"
COLUMNS = ("full", "LoRA", "generate", "save and reload")
PROMPTS, RESPONSES = [[5, 6, 7, 8, 9], [9, 8]], [[11, 12], [13, 14, 15, 16]]
# Wrapped models that the installed transformers cannot run on text are refused in one line.
REFUSED = {"Llama 4"}


def rows() -> dict[str, list[str]]:
    """The table of the page: architecture to cells."""
    head = "| architecture | " + " | ".join(COLUMNS) + " |\n"
    table = DOC.read_text(encoding="utf-8").partition(head)[2].partition("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]
    return {name: cells for name, *cells in lines}


def test_the_page_lists_what_is_tested() -> None:
    table = rows()
    assert table.keys() == ARCHITECTURES.keys()
    for name, cells in table.items():
        assert cells == (["refused"] if name in REFUSED else ["yes"]) * 4, name


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("lab")


def student(name: str, place: Path, tokenizer: Any, **over: Any) -> Any:
    build(name).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return load_model(ModelConfig(path=str(place), device="cpu", **over))


def log_probs(model: Any) -> torch.Tensor:
    return response_logits(model, PROMPTS, RESPONSES, 0)[:, -2:].float().log_softmax(-1)


def learn(model: Any) -> None:
    """A few updates; the loss falls."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(4):
        loss = -log_probs(model.train())[..., 3].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1e-2


def check_batches(model: Any) -> None:
    """Padding and neighbours change no log-prob; training mode neither."""
    together = log_probs(model.eval())
    for i in range(len(PROMPTS)):
        alone = response_logits(model, PROMPTS[i : i + 1], RESPONSES[i : i + 1], 0)[:, -2:]
        assert torch.allclose(alone.float().log_softmax(-1)[0], together[i], atol=2e-3)
    assert torch.allclose(log_probs(model.train()), together, atol=1e-5)


def check_generation(model: Any, tokenizer: Any) -> None:
    """Greedy tokens are the likeliest of the forward pass that is trained on."""
    engine = HFEngine(model, tokenizer, 4, 128)
    sampling = Sampling(0.0, 1.0, 6)
    requests = [Request(tuple(prompt), sampling, seed) for seed, prompt in enumerate(PROMPTS)]
    done = [completion.token_ids for completion in engine.generate(requests)]
    model.eval()
    for prompt, tokens in zip(PROMPTS, done, strict=True):
        logits = response_logits(model, [prompt], [tokens], 0)[0]
        best = logits.max(-1).values - logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        assert best.max() < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str, lora: bool, tmp_path: Path, tokenizer: Any) -> None:
    adapters = LoraConfig(rank=4) if lora else None
    if not hasattr(transformers, ARCHITECTURES[name][0]):
        pytest.skip(f"transformers {transformers.__version__} does not know it")
    if name in REFUSED:
        with pytest.raises(UserError, match="fails on text without images"):
            student(name, tmp_path / "m", tokenizer, lora=adapters)
        return
    model = student(name, tmp_path / "m", tokenizer, lora=adapters)
    learn(model)
    check_batches(model)
    check_generation(model, tokenizer)
    save_model(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert verify_saved(model, tmp_path / "saved") < 1e-3
    again = load_model(ModelConfig(path=str(tmp_path / "saved"), device="cpu"))
    assert type(again).__name__ == ARCHITECTURES[name][1]
    assert torch.allclose(log_probs(again.eval()), log_probs(model.eval()), atol=1e-3)
    if lora:
        from peft import PeftModel

        plain = load_model(ModelConfig(path=str(tmp_path / "m"), device="cpu"))
        beside = PeftModel.from_pretrained(plain, tmp_path / "saved" / "adapter").eval()
        assert torch.allclose(log_probs(beside), log_probs(model.eval()), atol=1e-3)
