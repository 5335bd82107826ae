"""The engine's own loop against `model.generate`: the same tokens, row by row."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
import transformers
from families import ARCHITECTURES, build
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from resd.engines import HFEngine, Request, Sampling, cache, decode
from resd.engines.cache import GrowingLayer, GrowingWindow
from resd.engines.decode import why_not
from resd.models.load import load_tokenizer

# Those that go through `model.generate`, or are refused.
OTHERS = ("PhiMoE", "Llama 4")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("lab")


def requests(shared: int = 0) -> list[Request]:
    """Prompts of several lengths, two of them twice; greedy and sampled; other limits."""
    begin = tuple(5 + (7 * i) % 600 for i in range(shared))
    prompts = [(*begin, 9 + i, *(5 + (i * j) % 600 for j in range(1, 3 + 2 * i))) for i in range(6)]
    return [
        Request(prompts[i % 6], Sampling(i % 3 / 2, 1.0 - 0.1 * (i % 2), 8 + 2 * i), 100 + i)
        for i in range(8)
    ]


def compare(model: Any, tokenizer: Any, asked: list[Request]) -> None:
    engine, plain = HFEngine(model, tokenizer, 64, 256), HFEngine(model, tokenizer, 64, 256)
    plain._slow[type(model)] = "the test says so"
    found = engine.generate(asked)
    assert len({len(c.token_ids) for c in found}) > 2  # rows end, others go on
    for a, b in zip(found, plain.generate(asked), strict=True):
        assert (a.token_ids, a.finish_reason, a.text) == (b.token_ids, b.finish_reason, b.text)
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in OTHERS])
def test_an_architecture_says_what_generate_says(
    name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(transformers, ARCHITECTURES[name][0]):
        pytest.skip(f"transformers {transformers.__version__} does not know it")
    model = build(name).eval()
    assert why_not(model) is None
    compare(model, tokenizer, requests())
    # The cache moves; what the prompts share is read once.
    monkeypatch.setattr(cache, "_ROOM", 3)
    compare(model, tokenizer, requests(shared=40))


def test_what_prompts_share_is_read_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    call = decode._Step.__call__

    def counted(self: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        read.append(tuple(ids.shape))
        return call(self, ids, *rest)

    monkeypatch.setattr(decode._Step, "__call__", counted)
    HFEngine(build("Qwen3").eval(), tokenizer, 64, 256).generate(requests(shared=40))
    assert read[:2] == [(1, 40), (6, 13)]  # six prompts of eight requests
    assert read[2] == (8, 1)
    assert read[-1] == (1, 1)  # the others have ended
    # Windows and states count padding as tokens: there it may stand only in front.
    for name in ("Gemma 3 (text)", "Mistral"):
        read.clear()
        HFEngine(build(name).eval(), tokenizer, 64, 256).generate(requests(shared=40))
        assert read[0] == (6, 53)
    # One prompt is the beginning of another.
    read.clear()
    long = requests(shared=40)[5]
    short = Request(long.prompt_ids[:36], long.sampling, 3)
    compare(build("Qwen3").eval(), tokenizer, [long, short, *requests(shared=40)])
    assert read[:2] == [(1, 35), (7, 18)]


def test_the_room_of_a_response_is_its_own(tokenizer: Any) -> None:
    """A longer prompt beside it takes nothing of the context."""
    model = build("Qwen3").eval()
    asked = [Request((9,), Sampling(0.0, 1.0, 40), 0), Request((9,) * 25, Sampling(0, 1, 40), 0)]
    engine = HFEngine(model, tokenizer, 64, 30)
    engine._reader.end_ids = [10**6]
    assert [len(c.token_ids) for c in engine.generate(asked)] == [29, 5]


def test_a_completion_is_told_of_when_it_is_there(tokenizer: Any) -> None:
    told: list[tuple[int, int]] = []
    done = HFEngine(build("Qwen3").eval(), tokenizer, 64, 256).generate(
        requests(), lambda i, completion: told.append((i, len(completion.token_ids)))
    )
    assert sorted(told) == [(i, len(c.token_ids)) for i, c in enumerate(done)]
    assert [length for _, length in told] == sorted(length for _, length in told)


def test_other_models_go_through_generate_and_it_is_said_once(tokenizer: Any) -> None:
    model = build("PhiMoE").eval()
    assert why_not(model) == "it has its own prepare_inputs_for_generation"
    engine = HFEngine(model, tokenizer, 64, 256)
    with pytest.warns(UserWarning, match="PhimoeForCausalLM generates by transformers' own loop"):
        assert len(engine.generate(requests())) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.generate(requests()[:1])


def test_a_cache_of_an_unknown_kind_goes_through_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(DynamicLayer):
        pass

    model = build("Qwen3")
    assert why_not(model) is None
    made = transformers.DynamicCache(config=model.config)
    made.layers[1] = Other()
    monkeypatch.setattr(cache, "DynamicCache", lambda config: made)
    assert "unknown kind" in (why_not(model) or "")


@pytest.mark.parametrize("first", [1, 5, 20])
@pytest.mark.parametrize("window", [None, 2, 8])
def test_a_growing_layer_holds_what_a_dynamic_one_holds(
    window: int | None, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_ROOM", 4)
    own: Any = GrowingLayer() if window is None else GrowingWindow(window)
    theirs: Any = DynamicLayer() if window is None else DynamicSlidingWindowLayer(window)
    torch.manual_seed(0)
    mask_sizes, rows = inspect.signature(theirs.get_mask_sizes).parameters, 3
    for number, new in enumerate([first, 3, *[1] * 14]):
        new_tokens = torch.randn(2, rows, 2, new, 4)
        asked = torch.arange(new) if "cache_position" in mask_sizes else new
        assert own.get_mask_sizes(asked) == theirs.get_mask_sizes(asked)
        found, wanted = own.update(*new_tokens), theirs.update(*new_tokens)
        for a, b in zip((*found, own.keys, own.values), (*wanted, theirs.keys, theirs.values)):  # noqa: B905
            assert torch.equal(a, b)
        assert own.get_seq_length() == theirs.get_seq_length()
        if number in (2, 9):
            chosen = torch.tensor([2, 0, 0] if number == 2 else [1, 2])
            own.reorder_cache(chosen)
            theirs.reorder_cache(chosen)
            rows = len(chosen)
