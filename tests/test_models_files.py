"""What a model directory may say, and what a run does with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CHATML, CHATML_TOKENS, tokenizer, turns

from resd.config import LoraConfig, ModelConfig
from resd.engines import HFEngine, Request, Sampling
from resd.engines.tokens import end_of_turn, end_token_ids, pad_token_id
from resd.errors import UserError
from resd.models.batch import response_logits
from resd.models.load import load_model, load_tokenizer
from resd.models.pins import pin_model


@pytest.fixture
def place(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **fields}))


def student(place: Path, **over: Any) -> Any:
    return load_model(ModelConfig(path=str(place), device="cpu", **over))


def save(model: Any, place: Path) -> Path:
    from transformers import AutoTokenizer

    from resd.models.load import LAB_MODEL

    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(LAB_MODEL).save_pretrained(place)
    return place


# -- sampling and the generation config -----------------------------------------------------------

ODD: dict[str, dict[str, Any]] = {
    "temperature without sampling": {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
    "beams": {"num_beams": 3, "early_stopping": True},
    "penalties": {"repetition_penalty": 1.9, "no_repeat_ngram_size": 1, "min_new_tokens": 5},
    "tokens": {"suppress_tokens": [5, 6, 7], "forced_eos_token_id": 9, "bad_words_ids": [[8]]},
    "top-k": {"do_sample": True, "top_k": 2, "min_p": 0.5, "typical_p": 0.3, "epsilon_cutoff": 0.1},
    "watch": {
        "stop_strings": ["a"],
        "max_time": 0.0,
        "output_scores": True,
        "num_return_sequences": 3,
    },
}


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("kind", ODD)
def test_no_field_of_the_generation_config_changes_the_policy(
    kind: str, file: str, place: Path, tmp_path: Path
) -> None:
    tok = load_tokenizer(str(place))
    sampling = Sampling(1.0, 1.0, 8)
    asked = [Request((5, 6, 7), sampling, 0), Request((9,) * 6, sampling, 1)]
    plain = HFEngine(student(place), tok, 4, 64).generate(asked)
    change(place / file, **ODD[kind])
    model = student(place)
    assert HFEngine(model, tok, 4, 64).generate(asked) == plain
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert not saved.keys() & ODD[kind].keys() or all(
        saved[k] is None for k in ODD[kind] if k in saved
    )
    assert saved["eos_token_id"] == tok.eos_token_id


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"eos_token_id": ["x", null, true], "top_k": "y"}']
)
def test_a_generation_config_that_makes_no_sense_is_not_obeyed(content: str, place: Path) -> None:
    (place / "generation_config.json").write_text(content)
    tok = load_tokenizer(str(place))
    assert end_token_ids(student(place), tok) == [tok.eos_token_id]


def test_the_cache_is_used_whatever_the_config_says(place: Path) -> None:
    change(place / "config.json", use_cache=False)
    change(place / "generation_config.json", use_cache=False)
    model, seen = student(place), []
    model.get_input_embeddings().register_forward_hook(lambda m, a, o: seen.append(a[0].shape[1]))
    asked = [Request((5,) * 30, Sampling(1.0, 1.0, 8), 0)]
    HFEngine(model, load_tokenizer(str(place)), 4, 64).generate(asked)
    assert sum(seen) < 40


def test_outputs_that_nobody_reads_are_off(place: Path) -> None:
    change(
        place / "config.json",
        return_dict=False,
        output_attentions=True,
        output_hidden_states=True,
    )
    output = student(place)(input_ids=torch.tensor([[5, 6]]))
    assert output.logits.shape[:2] == (1, 2)
    assert not output.get("hidden_states") and not output.get("attentions")


# -- end and padding tokens -----------------------------------------------------------------------


def test_a_padding_token_beyond_the_embedding_gives_way(place: Path) -> None:
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(place)
    tok.add_special_tokens({"pad_token": "[PAD]"})
    tok.save_pretrained(place)
    loaded = load_tokenizer(str(place))
    assert loaded.pad_token_id == loaded.eos_token_id
    assert pad_token_id(tok, [7], tok.pad_token_id) == 7
    assert pad_token_id(tok, [7], tok.pad_token_id + 1) == tok.pad_token_id
    tok.pad_token = None
    assert pad_token_id(tok, [7, 8]) == 7


def test_an_end_token_beyond_the_embedding_is_refused(place: Path) -> None:
    from transformers import AutoTokenizer

    model = student(place)
    tok = AutoTokenizer.from_pretrained(place)
    tok.add_special_tokens({"eos_token": "<|last|>"})
    tok.save_pretrained(place)
    # The template still ends turns by a token that the model knows.
    assert tok.eos_token_id not in end_token_ids(model, load_tokenizer(str(place)))
    tok.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tok.save_pretrained(place)
    with pytest.raises(UserError, match=r"end token .*beyond the model's \d+ tokens"):
        load_tokenizer(str(place))
    model.generation_config.eos_token_id = model.config.eos_token_id = 10**6
    with pytest.raises(UserError, match="every end token"):
        end_token_ids(model, tok)


def test_end_tokens_come_from_all_files(place: Path) -> None:
    change(place / "generation_config.json", eos_token_id=[5, 6, 10**6])
    model, tok = student(place), tokenizer(CHATML, CHATML_TOKENS)
    assert model.generation_config.eos_token_id == [5, 6]
    model.resize_token_embeddings(len(tok))
    turn = tok.convert_tokens_to_ids("<|im_end|>")
    assert end_token_ids(model, tok) == sorted({5, 6, tok.eos_token_id, turn})


GPT_OSS = turns("<|start|>ROLE<|message|>", "<|end|>", "<|start|>assistant")
SOLAR = turns("<|begin|>ROLE<|content|>", "<|end|>", "", "<|think|>THOUGHT<|end|>")
ENDS: dict[str, tuple[Callable[[], Any], str | None]] = {
    "ChatML": (lambda: tokenizer(CHATML, CHATML_TOKENS), "<|im_end|>"),
    "a space before the mark": (lambda: tokenizer(turns("", " </s>", ""), ("</s>",)), "</s>"),
    "the longest mark": (lambda: tokenizer(turns("", "<e><f>", ""), ("<e>", "<e><f>")), "<e><f>"),
    "an added token": (lambda: tokenizer(turns("", "<eot>", ""), (), ("<eot>",)), "<eot>"),
    "GLM": (lambda: tokenizer(turns("<|ROLE|>\\n", "", "<|assistant|>")), "<|user|>"),
    "plain text": (lambda: tokenizer(turns("ROLE: ", "\\n\\n", "assistant: ")), None),
    "gpt-oss": (
        lambda: tokenizer(GPT_OSS, ("<|start|>", "<|end|>", "<|message|>", "<|channel|>")),
        None,
    ),
    "the mark closes the thinking too": (
        lambda: tokenizer(SOLAR, ("<|begin|>", "<|content|>", "<|end|>", "<|think|>")),
        None,
    ),
    "parts": (
        lambda: tokenizer(
            "{% for m in messages %}{{ m['content'][0]['text'] }}<|im_end|>{% endfor %}",
            CHATML_TOKENS,
        ),
        "<|im_end|>",
    ),
    "a template that refuses": (lambda: tokenizer("{{ raise_exception('no') }}"), None),
    "no template": (lambda: tokenizer(""), None),
}


@pytest.mark.parametrize("kind", ENDS)
def test_the_token_that_the_template_ends_a_turn_with(kind: str) -> None:
    make, wanted = ENDS[kind]
    tok = make()
    found = end_of_turn(tok)
    assert (None if found is None else tok.convert_ids_to_tokens(found)) == wanted


def test_decoding_is_exact(place: Path) -> None:
    change(
        place / "tokenizer_config.json",
        clean_up_tokenization_spaces=True,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )
    tok = load_tokenizer(str(place))
    for text in ("x != y", "do n't , it 's", "a ? b : c . d", " two  spaces "):
        ids = tok(text, add_special_tokens=False)["input_ids"]
        assert tok.decode(ids, skip_special_tokens=True) == text


# -- one policy -----------------------------------------------------------------------------------


def gpt2(**config: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=704, n_embd=32, n_layer=2, n_head=2, **config))


def mixture(name: str, **config: Any) -> Any:
    import transformers

    shape = {
        "vocab_size": 704, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4,
        "initializer_range": 0.2,
    }  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**shape, **config)
    )


NOISY: dict[str, Callable[[], Any]] = {
    "dropout": lambda: gpt2(initializer_range=0.2),
    "attention dropout": lambda: mixture("Mixtral", attention_dropout=0.5),
    "router noise": lambda: mixture("Mixtral", router_jitter_noise=0.9),
    "sampled experts": lambda: mixture("Phimoe", router_jitter_noise=5.0, input_jitter_noise=0.5),
}


@pytest.mark.parametrize("kind", NOISY)
def test_nothing_in_a_forward_pass_is_random(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = NOISY[kind]()
    save(made, tmp_path / "m")
    ids = torch.arange(5, 45)[None]
    # The stand-in is noisy, or the test says nothing.
    assert not torch.equal(*(made.train()(input_ids=ids).logits for _ in range(2)))
    model = student(tmp_path / "m")
    sampler = model.eval()(input_ids=ids).logits
    assert torch.equal(model.train()(input_ids=ids).logits, sampler)
    assert torch.allclose(sampler, made.eval()(input_ids=ids).logits, atol=1e-5)


def test_rates_that_no_config_holds_are_zero_too() -> None:
    made = gpt2()
    made.transformer.drop = torch.nn.Dropout(0.5)
    made.transformer.layerdrop = 0.5
    pin_model(made)
    assert made.transformer.drop.p == made.transformer.layerdrop == 0


def test_adapters_with_dropout_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.dropout is 0\.1"):
        student(place, lora=LoraConfig(dropout=0.1))


def test_attention_with_a_soft_cap_is_computed_with_it(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=704, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, attn_logit_softcapping=0.5,
        query_pre_attn_scalar=1, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    made = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    save(made, tmp_path / "m")
    ids = torch.arange(5, 25)[None]
    found = student(tmp_path / "m").eval()(input_ids=ids).logits
    assert torch.allclose(found, made(input_ids=ids).logits, atol=1e-5)


# -- what cannot be trained -----------------------------------------------------------------------


def test_an_encoder_decoder_is_refused(place: Path) -> None:
    from transformers import T5Config

    T5Config(d_model=16, num_layers=1).save_pretrained(place)
    with pytest.raises(UserError, match="encoder-decoder"):
        student(place)


def test_quantised_weights_are_refused(place: Path) -> None:
    change(place / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match=r"quantised \(gptq\)"):
        student(place)


def test_code_of_the_model_is_not_run(place: Path) -> None:
    change(
        place / "config.json",
        model_type="own",
        architectures=["Own"],
        auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    )
    (place / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="cannot be loaded"):
        student(place)


def test_weights_that_are_missing_are_refused(place: Path) -> None:
    change(place / "config.json", num_hidden_layers=2, layer_types=["full_attention"] * 2)
    with pytest.raises(UserError, match="weights are missing"):
        student(place)


# -- wrapped text models --------------------------------------------------------------------------


def wrapped() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 712, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    eyes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config=eyes,
            image_token_index=704,
            boi_token_index=705,
            eoi_token_index=706,
            mm_tokens_per_image=4,
        )
    )


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_text_alone_is_trained_in_a_wrapped_model(lora: LoraConfig | None, tmp_path: Path) -> None:
    place = save(wrapped(), tmp_path / "m")
    model = student(place, lora=lora).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not any("vision" in name or "projector" in name for name in trained)
    response_logits(model, [[5, 6]], [[7, 8]], 0).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == trained
