"""Generation: a seed a request, the distribution that was asked for, the trainer's log-probs."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from resd.engines import HFEngine, Request, Sampling
from resd.engines.base import left_pad
from resd.engines.choice import SeededChoice
from resd.errors import UserError
from resd.types import Completion

VOCABULARY, END, PAD = 12, 0, 1
FREE = Sampling(1.0, 1.0, 8)


def letters(end: int = END) -> PreTrainedTokenizerFast:
    """A tokenizer of letters: token 3 is `d`."""
    names = [chr(ord("a") + token) for token in range(VOCABULARY)]
    words = WordLevel({name: token for token, name in enumerate(names)}, unk_token=names[PAD])
    backend = Tokenizer(words)
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=names[end], pad_token=names[PAD]
    )


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made.eval()


def engine(model: Any, batch_size: int = 64, context: int = 64, end: int = END) -> HFEngine:
    return HFEngine(model, letters(end), batch_size, context)


@contextmanager
def generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """The model with another generation config for a while."""
    model.generation_config, before = config, model.generation_config
    try:
        yield
    finally:
        model.generation_config = before


@pytest.fixture
def endless(model: Any) -> Any:
    """The same model, whose files name no end token: only the tokenizer's is one."""
    made = copy.deepcopy(model)
    made.config.eos_token_id = made.generation_config.eos_token_id = None
    return made


def requests(number: int = 12, sampling: Sampling = FREE) -> list[Request]:
    prompts = [tuple(2 + (i * j) % 10 for j in range(1, 2 + i % 5)) for i in range(number)]
    return [Request(prompt, sampling, 1000 + i) for i, prompt in enumerate(prompts)]


def next_probs(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(prompt)])).logits[0, -1].double().softmax(-1)


def same(a: Completion, b: Completion) -> bool:
    """Alike but for the rounding of logits, which the shape of a batch may change."""
    close = a.log_probs == pytest.approx(b.log_probs, abs=1e-5)
    return close and replace(a, log_probs=None) == replace(b, log_probs=None)


# -- a seed a request -----------------------------------------------------------------------------


def test_a_request_is_answered_alike_in_any_company(model: Any) -> None:
    asked = requests()
    wanted = engine(model).generate(asked)
    assert len({c.token_ids for c in wanted}) > 8  # seeds and prompts matter
    assert {c.finish_reason for c in wanted} == {"stop", "length"}
    for size in (1, 5):
        assert [c.token_ids for c in engine(model, size).generate(asked)] == [
            c.token_ids for c in wanted
        ]
    backwards = engine(model, 5).generate(asked[::-1])[::-1]
    assert [c.token_ids for c in backwards] == [c.token_ids for c in wanted]
    # Beside others that are greedy, longer, and draw from another distribution.
    others = [replace(r, sampling=Sampling(0.0, 0.5, 20), seed=9) for r in requests(7)]
    mixed = engine(model).generate([r for pair in zip(others, asked, strict=False) for r in pair])
    assert [c.token_ids for c in mixed[1::2]] == [c.token_ids for c in wanted[:7]]


def test_other_seeds_and_a_used_global_generator(model: Any) -> None:
    asked = [replace(requests(1)[0], seed=seed) for seed in range(30)]
    first = engine(model).generate(asked)
    assert len({c.token_ids for c in first}) > 20
    torch.rand(3)
    assert engine(model).generate(asked) == first


# -- the distribution -----------------------------------------------------------------------------


def chi_square(found: Counter[int], expected: Sequence[float], number: int) -> tuple[float, int]:
    """The statistic, and its degrees of freedom."""
    cells = [(i, p * number) for i, p in enumerate(expected) if p > 0]
    return sum((found[i] - e) ** 2 / e for i, e in cells), len(cells) - 1


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.7, 0.7), (1.0, 0.3)])
def test_tokens_are_as_frequent_as_temperature_and_nucleus_say(
    model: Any, temperature: float, top_p: float
) -> None:
    prompt, number = (3, 5, 4), 4000
    sampling = Sampling(temperature, top_p, 1)
    asked = [Request(prompt, sampling, seed) for seed in range(number)]
    found = Counter(c.token_ids[0] for c in engine(model, 1000).generate(asked))
    probs = (next_probs(model, prompt).log() / temperature).softmax(-1).tolist()
    kept, mass = set(), 0.0
    for token in sorted(range(VOCABULARY), key=lambda i: -probs[i]):
        if mass >= top_p:
            break
        kept.add(token)
        mass += probs[token]
    assert top_p == 1.0 or 1 < len(kept) < VOCABULARY
    assert set(found) <= kept
    expected = [p / mass if i in kept else 0.0 for i, p in enumerate(probs)]
    statistic, freedom = chi_square(found, expected, number)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4


def choose(logits: Sequence[float], sampling: Sampling, seeds: int = 300) -> set[int]:
    asked = [Request((2,), sampling, seed) for seed in range(seeds)]
    choice = SeededChoice(asked, torch.device("cpu"))
    return set(choice.choose(torch.tensor([list(logits)] * seeds), 0)[0].tolist())


def test_a_nucleus_is_the_smallest_set_that_holds_its_share() -> None:
    logits = [math.log(p) for p in (0.5, 0.25, 0.125, 0.0625, 0.0625)]
    assert choose(logits, Sampling(1.0, 0.4, 1)) == {0}
    assert choose(logits, Sampling(1.0, 0.6, 1)) == {0, 1}
    assert choose(logits, Sampling(1.0, 0.8, 1)) == {0, 1, 2}
    assert choose(logits, Sampling(1.0, 0.9, 1)) == {0, 1, 2, 3, 4}  # equals stay together
    assert choose(logits, Sampling(1.0, 1e-6, 1)) == {0}
    # The temperature comes first: at 0.5 the first token alone has 0.74.
    assert choose(logits, Sampling(0.5, 0.7, 1)) == {0}


def test_a_nucleus_wider_than_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = Sampling(1.0, 0.5, 1)
    logits = [0.001 * i for i in range(40)]
    wide = choose(logits, flat, 500)
    monkeypatch.setattr("resd.engines.choice._FEW", (4, 8))
    assert choose(logits, flat, 500) == wide
    assert 15 < len(wide) <= 20
    assert min(wide) >= 20


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_a_token_is_the_same_however_many_were_looked_at(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the least probable of a nucleus has equals, and where rows have other shares."""
    shares = (0.3, 0.95, 1.0, 1e-6, 0.8)
    asked = [Request((2,), Sampling(1.0, shares[i % 5], 1), i) for i in range(200)]
    choice = SeededChoice(asked, torch.device("cpu"))
    logits = torch.randn(200, 100, generator=torch.Generator().manual_seed(0)) * scale
    for given in (logits, logits.round()):
        found = []
        for few in ((), (3,), (16, 64), (99,)):
            monkeypatch.setattr("resd.engines.choice._FEW", few)
            found.append(choice.choose(given, 0)[0].tolist())
        assert found == [found[0]] * 4
        assert len(set(found[0])) > 10
        most = given.gather(-1, torch.tensor(found[0])[:, None])[:, 0] == given.amax(-1)
        assert most[3::5].all()
        assert not most.all()


def test_greedy_takes_the_most_probable(model: Any) -> None:
    for request in requests(4, Sampling(0.0, 0.3, 6)):
        (done,) = engine(model).generate([request])
        ids = list(request.prompt_ids)
        for token in done.token_ids:
            assert token == int(next_probs(model, ids).argmax())
            ids.append(token)


# -- log-probs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [FREE, Sampling(0.5, 0.9, 6), Sampling(0.0, 1.0, 6)])
def test_log_probs_are_the_trainers_whatever_the_sampling(model: Any, sampling: Sampling) -> None:
    asked = requests(9, sampling)
    for request, done in zip(asked, engine(model, 4).generate(asked), strict=True):
        ids = [*request.prompt_ids, *done.token_ids]
        with torch.no_grad():
            rows = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(request.prompt_ids)
        wanted = [float(rows[i - 1, ids[i]]) for i in range(start, len(ids))]
        assert done.log_probs is not None
        assert done.log_probs == pytest.approx(wanted, abs=1e-5)


# -- where a response ends ------------------------------------------------------------------------


def test_limits_are_each_requests_own(endless: Any) -> None:
    limits = [1, 3, 7, 2]
    asked = [
        replace(r, sampling=Sampling(1.0, 1.0, n)) for r, n in zip(requests(4), limits, strict=True)
    ]
    never = engine(endless, end=VOCABULARY - 1)
    for request, limit, done in zip(asked, limits, never.generate(asked), strict=True):
        if done.finish_reason == "length":
            assert len(done.token_ids) == limit
        assert len(done.log_probs or ()) == len(done.token_ids) <= limit
        assert same(done, never.generate([request])[0])


def test_a_response_ends_with_any_of_the_end_tokens(model: Any) -> None:
    asked = [replace(requests(1)[0], seed=seed) for seed in range(60)]
    ends = (END, 7)
    done = engine(model, end=7).generate(asked)
    assert {c.token_ids[-1] for c in done if c.finish_reason == "stop"} == set(ends)
    for completion in done:
        *before, last = completion.token_ids
        assert not set(before) & set(ends)
        assert (completion.finish_reason == "stop") == (last in ends)
        spoken = [token for token in completion.token_ids if token not in (*ends, PAD)]
        wanted = "".join(chr(ord("a") + token) for token in spoken)
        assert completion.text == wanted == completion.answer


def test_the_models_own_end_tokens_count(model: Any) -> None:
    with_two = GenerationConfig(eos_token_id=[END, 5], pad_token_id=PAD)
    with generation_config(model, with_two):
        done = engine(model).generate([replace(requests(1)[0], seed=s) for s in range(40)])
    assert {c.token_ids[-1] for c in done if c.finish_reason == "stop"} == {END, 5}


def test_an_end_token_just_at_the_limit_is_an_end(model: Any) -> None:
    ended = [c for c in engine(model).generate(requests(40)) if c.finish_reason == "stop"]
    assert ended
    for request, done in zip(requests(40), engine(model).generate(requests(40)), strict=True):
        if done.finish_reason == "stop":
            exact = replace(request, sampling=Sampling(1.0, 1.0, len(done.token_ids)))
            assert same(engine(model).generate([exact])[0], done)


def test_the_context_is_a_limit_too(endless: Any) -> None:
    never = engine(endless, context=9, end=PAD)
    (done,) = never.generate([Request((3, 4, 5, 6), FREE, 2)])
    assert len(done.token_ids) <= 5
    with pytest.raises(ValueError, match="fills the whole context"):
        never.generate([Request((3,) * 9, FREE, 0)])
    assert never.generate([]) == []


# -- the model's own generation config ------------------------------------------------------------

OWN: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "top_k": 2, "top_p": 0.1, "temperature": 0.1, "min_p": 0.3},
    "other cut-offs": {"do_sample": True, "typical_p": 0.2, "epsilon_cutoff": 0.2},
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "encoder": {"encoder_repetition_penalty": 4.0, "encoder_no_repeat_ngram_size": 1},
    "lengths": {
        "min_length": 30,
        "min_new_tokens": 8,
        "exponential_decay_length_penalty": (1, 9.0),
    },
    "max_length": {"max_length": 5},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 3.0},
    "suppressed": {"suppress_tokens": [2, 3, 4], "begin_suppress_tokens": [5, 6, 7, 8]},
    "bad words": {"bad_words_ids": [[2], [3]], "sequence_bias": [[[4], 9.0]]},
    "forced": {"forced_bos_token_id": 4, "forced_eos_token_id": 5},
    "guidance": {"guidance_scale": 3.0},
    "cache": {"use_cache": False, "cache_implementation": "static"},
    "stops": {"stop_strings": ["c", "d"], "max_time": 1e-9},
    "outputs": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "assisted": {"prompt_lookup_num_tokens": 3},
    "invalid": {"remove_invalid_values": True, "renormalize_logits": True},
    "watermark": {"watermarking_config": {"bias": 9.0}},
}


@pytest.mark.parametrize("name", sorted(OWN))
def test_no_field_of_the_models_generation_config_changes_a_token(model: Any, name: str) -> None:
    wanted = engine(model).generate(requests())
    own = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    for key, value in OWN[name].items():
        setattr(own, key, value)
    with generation_config(model, own):
        assert engine(model).generate(requests()) == wanted
        assert model.generation_config is own  # it is saved with the model


# -- the rest -------------------------------------------------------------------------------------


def test_weights_that_diverged_are_the_users_to_hear_of(model: Any) -> None:
    with torch.no_grad():
        kept = model.lm_head.weight.clone()
        model.lm_head.weight[3] = math.nan
    try:
        with pytest.raises(UserError, match="diverged"):
            engine(model).generate(requests(2))
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(kept)


def test_the_modes_of_the_model_are_put_back(model: Any) -> None:
    model.train()
    engine(model).generate(requests(1))
    assert model.training
    model.eval()
    engine(model).generate(requests(1))
    assert not model.training


def test_sync_takes_another_model(model: Any) -> None:
    other = LlamaForCausalLM(model.config).eval()
    one = engine(model)
    wanted = engine(other).generate(requests())
    assert one.generate(requests()) != wanted
    one.sync(other, "other")
    assert one.generate(requests()) == wanted


def test_left_pad() -> None:
    ids, mask = left_pad([[5], [6, 7, 8]], 1)
    assert ids.tolist() == [[1, 1, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
