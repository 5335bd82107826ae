"""What the update costs on a GPU: head, MFU, long teacher contexts, padding, TRL. Under 9 minutes.

python benchmarks/gpu.py [--only WORD ...] [--minutes 8] [--device cuda] [--tiny]

Models have random weights in the shape of Qwen3-0.6B and Qwen3-4B: nothing is downloaded. Each row
says what was done, its seconds (the median of what was repeated), the most memory that it held at
once, and what follows from it. MFU counts six operations a weight and token, those of attention,
and the head where there are response tokens; the second forward pass of gradient checkpointing does
not count. --tiny is the same on small shapes, to see that it runs (`tests/test_benchmarks.py`).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from resd.config import GrpoConfig, SdpoConfig, TrainConfig
from resd.context import ContextBudgets, PromptBuilder, Templates
from resd.distill import divergence_per_token
from resd.distill.chunked import chunked_loss
from resd.loop.masters import Masters
from resd.loop.update import PolicyUpdate
from resd.methods import Services, make_method
from resd.methods.base import StepReport
from resd.models.load import checkpoint_gradients
from resd.models.sizes import architecture
from resd.types import TrainingSample

GIB = 1 << 30
# Dense bfloat16 operations a second, as the vendor gives them.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
Row = tuple[str, float, float, str]


class Bench:
    """Models, clocks and meters of one device.

    Args:
        device: to run on.
        tiny: small shapes.
    """

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = torch.device(device), tiny
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.names = ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B-Thinking-2507"]
        self.long = 256 if tiny else 16_384
        self.vocabulary = 2_000 if tiny else 151_936

    def model(self, name: str, **settings: Any) -> Any:
        """A model of random weights, float32."""
        from transformers import AutoModelForCausalLM

        config = architecture(name)
        if self.tiny:
            for key, value in {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
                               "num_hidden_layers": 2, "num_attention_heads": 4,
                               "num_key_value_heads": 2, "vocab_size": 2_000}.items():  # fmt: skip
                setattr(config, key, value)
            config.layer_types = ["full_attention"] * 2
        torch.manual_seed(0)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, **settings)

    def measured(self, work: Callable[[], Any], repeats: int = 3) -> tuple[float, float]:
        """Seconds (median) and the most memory above what was there before, in GiB."""
        work()  # kernels are chosen and compiled
        self._settle()
        before = torch.cuda.memory_allocated() if self.cuda else 0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            self._settle()
            began = time.perf_counter()
            work()
            self._settle()
            seconds.append(time.perf_counter() - began)
        most = torch.cuda.max_memory_allocated() - before if self.cuda else float("nan")
        return statistics.median(seconds), most / GIB

    def _settle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self) -> float:
        """Operations a second that the device can do; NaN where it is not known."""
        name = torch.cuda.get_device_name() if self.cuda else ""
        return next((peak for word, peak in PEAKS.items() if word in name), float("nan"))

    # -- cases ------------------------------------------------------------------------------

    def head(self) -> Iterator[Row]:
        """The loss head in chunks, and as a whole where it fits: RESD's loss, hidden size 2,560."""
        width = 64 if self.tiny else 2560
        heads = [
            torch.nn.Linear(width, self.vocabulary, bias=False, device=self.device) for _ in "12"
        ]
        student, teacher = (h.to(self.dtype) for h in heads)
        teacher.requires_grad_(False)
        student.weights = [student.weight]  # type: ignore[assignment]

        def loss(logits: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            settings: dict[str, Any] = {"alpha": 0.5, "top_k": 100, "support": "both"}
            return divergence_per_token(logits, theirs, ratio_min=0.2, **settings).sum()

        for tokens, chunk in (
            *((self.long // 8, c) for c in (None, 512)),
            *((self.long * 5 // 4, c) for c in (256, 512, 1024)),
        ):
            make: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
            ours = torch.randn(tokens, width, **make).requires_grad_()
            theirs = torch.randn(tokens, width, **make)

            def whole(ours: Any = ours, theirs: Any = theirs) -> None:
                loss(student(ours), teacher(theirs)).backward()

            def chunked(ours: Any = ours, theirs: Any = theirs, chunk: Any = chunk) -> None:
                def each(logits: torch.Tensor, span: slice) -> torch.Tensor:
                    return loss(logits, teacher(theirs[span]))

                chunked_loss(ours, student, each, chunk).backward()

            student.weight.grad = torch.zeros_like(student.weight)
            found = self.measured(whole if chunk is None else chunked)
            what = "whole" if chunk is None else f"chunks of {chunk}"
            copy = tokens * self.vocabulary * 4 / GIB
            yield (
                f"head, T {tokens}, {what}",
                *found,
                f"{found[1] / copy:.2f} of a copy of the logits",
            )

    def update(self) -> Iterator[Row]:
        """GRPO's update: forward, loss, backward, AdamW; MFU."""
        for name in self.names:
            length = self.long // 4
            model, update = self._update(name, GrpoConfig(), micro=self.long)
            samples = self._samples(8, length // 2, length // 2, 0)
            found = self.measured(partial(update.run, samples, StepReport()), repeats=2)
            done = self._operations(model.config, model, 8, length, length // 2)
            rate, per = done / found[0], 8 * length / found[0]
            yield (
                f"update, {_short(name)}, 8 x {length}", *found,
                f"{per:,.0f} tokens/s, {rate / 1e12:.1f} TFLOP/s, MFU {rate / self.peak():.0%}"
                if self.cuda else f"{per:,.0f} tokens/s",
            )  # fmt: skip
            del model, update
            self._free()

    def long_contexts(self) -> Iterator[Row]:
        """A RESD update whose teacher reads a long context."""
        for name in self.names:
            config = SdpoConfig.model_validate({"teacher": {"kind": "frozen"}})
            model, update = self._update(name, config, micro=self.long + self.long // 8)
            samples = self._samples(4, self.long // 32, self.long // 16, self.long)
            found = self.measured(partial(update.run, samples, StepReport()), repeats=2)
            read = 4 * (self.long + self.long // 16) / found[0]
            yield (
                f"teacher reads 4 x {self.long}, {_short(name)}",
                *found,
                f"{read:,.0f} read tokens/s",
            )
            del model, update
            self._free()

    def padding(self) -> Iterator[Row]:
        """Rows of unlike length: padded with a mask, one by one, and by FlashAttention."""
        lengths = [self.long // n for n in (4, 5, 6, 8)]
        kinds = ["sdpa"]
        if self.cuda and importlib.util.find_spec("flash_attn"):
            kinds.append("flash_attention_2")
        for kind in kinds:
            model = self.model(self.names[0], attn_implementation=kind).to(self.dtype)
            checkpoint_gradients(model)
            wide = max(lengths)
            ids = torch.randint(5, 2_000, (len(lengths), wide), device=self.device)
            mask = torch.zeros_like(ids)
            for row, length in enumerate(lengths):
                mask[row, wide - length :] = 1

            def padded(model: Any = model, ids: Any = ids, mask: Any = mask) -> None:
                out = model.model(input_ids=ids, attention_mask=mask, use_cache=False)
                out.last_hidden_state.float().square().mean().backward()

            def single(model: Any = model, ids: Any = ids, wide: int = wide) -> None:
                for row, length in enumerate(lengths):
                    out = model.model(
                        input_ids=ids[row : row + 1, wide - length :], use_cache=False
                    )
                    out.last_hidden_state.float().square().mean().backward()

            for what, work in (("padded", padded), ("one by one", single)):
                found = self.measured(work)
                yield f"{kind}, {what}", *found, f"{sum(lengths) / found[0]:,.0f} tokens/s"
            del model
            self._free()

    def trl(self) -> Iterator[Row]:
        """Steps beside TRL's SDPOTrainer, by benchmarks/step.py."""
        words = ["--rounds", "1", "--steps", "3", *(() if self.tiny else ("--tokens", "256"))]
        if not importlib.util.find_spec("trl") or self.tiny:
            words.append("--without-trl")
        began = time.perf_counter()
        script = Path(__file__).with_name("step.py")
        done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        print(done.stdout)
        yield "benchmarks/step.py", time.perf_counter() - began, float("nan"), "see above"

    # -- parts ------------------------------------------------------------------------------

    def _update(self, name: str, config: Any, micro: int) -> tuple[Any, PolicyUpdate]:
        model = self.model(name)
        checkpoint_gradients(model)
        masters = Masters(model, self.dtype if self.cuda else None)
        builder = PromptBuilder(Templates(), ContextBudgets(), len, len, 10**9)
        services = Services(
            builder=builder, encode=_nothing, count_tokens=len, write=_nothing, student=model,
            weights=masters.weights, trace=_nothing, phase=lambda name: nullcontext(), seed=0,
            pad_id=0,
        )  # fmt: skip
        train = TrainConfig(micro_batch_tokens=micro, updates_per_batch=1, lr=1e-9)
        return model, PolicyUpdate(model, masters, make_method(config, services), train, 0)

    def _samples(
        self, number: int, prompt: int, response: int, teacher: int
    ) -> list[TrainingSample | None]:
        torch.manual_seed(1)

        def ids(length: int) -> tuple[int, ...]:
            return tuple(torch.randint(5, self.vocabulary, (length,)).tolist())

        return [
            TrainingSample(ids(prompt), ids(response), ids(teacher), advantage=(-1.0) ** i)
            for i in range(number)
        ]

    def _operations(self, config: Any, model: Any, rows: int, length: int, response: int) -> float:
        head = config.vocab_size * config.hidden_size
        body = sum(p.numel() for p in model.parameters()) - head  # tied: once; else both, less one
        if not config.tie_word_embeddings:
            body -= head
        width = config.num_attention_heads * config.head_dim
        attention = config.num_hidden_layers * width * length  # causal: half of 12 x ... x length
        return 6.0 * rows * (length * (body + attention) + response * head)

    def _free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def _nothing(*args: Any, **kwargs: Any) -> Any:
    return []


def _short(name: str) -> str:
    return "-".join(name.split("/")[-1].split("-")[:2])


def main() -> int:
    """Print the table row by row; a case that fails or comes too late is a row that says so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="cases: head update long padding trl")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; --device cpu --tiny shows that it runs")
    bench = Bench(options.device, options.tiny)
    cases = {
        "head": bench.head, "update": bench.update, "long": bench.long_contexts,
        "padding": bench.padding, "trl": bench.trl,
    }  # fmt: skip
    unknown = sorted(set(options.only) - set(cases))
    if unknown:
        parser.error(f"no case {unknown[0]}; there are {', '.join(cases)}")
    where = torch.cuda.get_device_name() if bench.cuda else "CPU"
    print(f"{where}, torch {torch.__version__}, {bench.dtype}\n")
    print(f"{'case':44} {'seconds':>9} {'GiB':>7}  what follows")
    began, failed = time.perf_counter(), False
    for name in options.only or cases:
        if time.perf_counter() - began > 60 * options.minutes:
            print(f"{name:44} {'not run: too late':>17}")
            continue
        try:
            for what, seconds, memory, follows in cases[name]():
                print(f"{what:44} {seconds:9.3f} {memory:7.2f}  {follows}", flush=True)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            failed = True
            print(f"{name:44} failed: {str(error).splitlines()[0][:90]}", flush=True)
            bench._free()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
