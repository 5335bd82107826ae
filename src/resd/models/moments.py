"""What comes and goes in a run: generation, the teacher's pass, loss, backward pass, optimiser.

The coefficients were counted on the tensors of real models (tests/test_memory_live.py) and hold
for decoders with gated MLPs or experts and fused attention; whole runs are compared in
benchmarks/memory.py. They are those of `transformers` in eager mode: nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resd.config import DistillConfig, ResdConfig, RunConfig
from resd.models.sizes import Sizes

# The loss widens no more logits than these at once (distill/divergence.py).
_BLOCK = 1 << 24
# Bytes a number of the vocabulary to choose a token, in float32 and float64 (engines/choice.py).
_CHOICE = 36
_MICRO, _CHECKPOINT = "train.micro_batch_tokens", "model.gradient_checkpointing true"
_RESPONSE, _ROWS = "rollout.max_new_tokens", "rollout.batch_size"


@dataclass(frozen=True)
class Part:
    """A part of the memory: bytes, how they come about, and which setting makes it less."""

    name: str
    bytes: int
    formula: str
    lower: str = ""


def moments(
    run: RunConfig, sizes: Sizes, processes: int, device: str, base: int
) -> Mapping[str, tuple[Part, ...]]:
    """What comes on top of what is there all the time, by moment.

    Args:
        run: the settings.
        sizes: of the model.
        processes: that share the run.
        device: the kind.
        base: bytes that are there all the time.
    """
    return _Moments(run, sizes, processes, device).all(base)


def fewer_trained(sizes: Sizes) -> str:
    """The setting that leaves fewer weights to train."""
    return "model.lora.rank" if sizes.adapters else "adapters (model.lora.rank 16)"


@dataclass(frozen=True)
class _Pass:
    """Tokens of a forward pass: all, of its longest sequence, and length x length over its rows.

    `padded` is the latter where rows are padded: one sequence alone needs no mask.
    """

    tokens: int
    longest: int
    square: int
    padded: int

    @classmethod
    def of(cls, longest: int, budget: int, rows: int) -> _Pass:
        several = min(budget, rows * longest)
        most = min(longest, several // 2)
        return cls(
            max(longest, several),
            longest,
            max(longest * longest, several * most),
            several * most if rows > 1 and most else 0,
        )


class _Moments:
    def __init__(self, run: RunConfig, sizes: Sizes, processes: int, device: str) -> None:
        self.run, self.sizes, self.n, self.device = run, sizes, processes, device
        self.distilled = isinstance(run.method, DistillConfig)
        rows, new = run.train.batch_size * run.method.most_rollouts, run.rollout.max_new_tokens
        budget, window = run.train.micro_batch_tokens, sizes.window
        student = teacher = min(run.rollout.max_prompt_tokens + new, window)
        if isinstance(run.method, DistillConfig):
            teacher = min(run.method.max_teacher_tokens + new, window)
        self.teacher = _Pass.of(teacher, budget, rows)
        anchors = run.method.anchors
        self.anchored = bool(anchors.weight)
        if self.anchored:
            rows, new = max(rows, anchors.batch), max(new, anchors.max_new_tokens)
            longest = anchors.max_prompt_tokens + anchors.max_new_tokens
            student = min(max(student, longest), window)
        self.student = _Pass.of(student, budget, rows)
        # Tokens of responses in a micro-batch.
        self.responses = min(self.student.tokens, max(new, min(budget, rows * new)))

    def all(self, base: int) -> Mapping[str, tuple[Part, ...]]:
        sizes, loaded = self.sizes, self.sizes.bare * self.sizes.stored
        if self.device == "cpu" and sizes.b < sizes.stored:
            loaded += sizes.bare * sizes.b  # the file stays mapped while it is narrowed
        update = (self._gradients(), *self._unsharded(2))
        found = {
            "loading": (
                Part(
                    "model as loaded", max(0, loaded - base), "parameters as stored, less the rest"
                ),
            ),
            "prompts": (*self._whole(), *self._prompts()),
            "generation": (*self._whole(), *self._generation()),
            "teacher's pass": (
                self._gradients(),
                *self._unsharded(1),
                *self._forward(self.teacher),
            ),
            "loss": (*update, *self._saved(), self._states(), self._head()),
            "backward pass": (*update, *self._saved(), self._states(), *self._back()),
            "optimiser step": (self._gradients(), self._step()),
            "saving": (self._saving(),),
        }
        if self.n > 1 or not sizes.bare:
            del found["loading"], found["saving"]
        if not self.distilled:
            del found["teacher's pass"]
        if self.run.engine.kind != "hf":  # what generates has memory of its own
            del found["prompts"], found["generation"]
        return found

    def _gradients(self) -> Part:
        """From the first micro-batch of an update to the optimiser's step."""
        s, share = self.sizes, f" / {self.n}" if self.n > 1 else ""
        size = s.trained * s.wide // self.n
        return Part("gradients", size, f"trained x {s.wide}{share}", fewer_trained(s))

    # -- several processes --------------------------------------------------------------------

    def _whole(self) -> tuple[Part, ...]:
        """Each process holds all weights while it generates."""
        if self.n == 1:
            return ()
        size = (self.sizes.bare + self.sizes.trained * self.sizes.adapters) * self.sizes.b
        return (Part("generation copy", size, "parameters x b, unsharded"),)

    def _unsharded(self, models: int) -> tuple[Part, ...]:
        """Embedding, norm and head, and two layers: the next is fetched while one computes."""
        if self.n == 1:
            return ()
        own = isinstance(self.run.method, DistillConfig) and not self.sizes.adapters
        own = own and self.run.method.teacher.kind != "live"  # type: ignore[union-attr]
        roots = models if own else 1
        size = (roots * self.sizes.outside + 2 * self.sizes.largest_layer) * self.sizes.b
        return (Part("unsharded", size, f"({roots} x embedding and head, 2 layers) x b"),)

    # -- generation -----------------------------------------------------------------------------

    def _asked(self) -> list[tuple[int, int, int]]:
        """Rows, most tokens of a prompt, and of it with its answer: responses, then reflections."""
        run, window = self.run, self.sizes.window
        most, batch = run.rollout.batch_size, run.train.batch_size * run.method.most_rollouts
        tested = run.evaluation.max_examples
        rows = most if tested is None else min(most, max(batch, tested * run.evaluation.samples))
        prompt, new = run.rollout.max_prompt_tokens, run.rollout.max_new_tokens
        found = [(rows, min(prompt, window), min(prompt + new, window))]
        if isinstance(run.method, ResdConfig):
            prompt = run.method.max_teacher_tokens
            new = max(run.method.reflection_tokens, run.method.curation_tokens)
            found.append((min(most, batch), min(prompt, window), min(prompt + new, window)))
        if self.anchored:
            anchors = run.method.anchors
            prompt, new = anchors.max_prompt_tokens, anchors.max_new_tokens
            rows = min(most, anchors.number)
            found.append((rows, min(prompt, window), min(prompt + new, window)))
        return found

    def _prompts(self) -> tuple[Part, ...]:
        return max((self._prompt(*asked[:2]) for asked in self._asked()), key=_sum)

    def _prompt(self, rows: int, prompt: int) -> tuple[Part, ...]:
        padded = rows * prompt * prompt if rows > 1 else 0
        tokens = _Pass(rows * prompt, prompt, rows * prompt * prompt, padded)
        size = rows * self.sizes.cache(prompt) * self.sizes.b
        formula = f"{rows} rows x {prompt:,} tokens x keys and values of all layers x b"
        return Part("cache", size, formula, _ROWS), *self._forward(tokens, _ROWS)

    def _generation(self) -> tuple[Part, ...]:
        return max((self._tokens(rows, whole) for rows, _, whole in self._asked()), key=_sum)

    def _tokens(self, rows: int, longest: int) -> tuple[Part, ...]:
        numbers = self.sizes.cache(longest)
        # A layer's keys are copied when its room is full.
        size = rows * (numbers + numbers // max(1, self.sizes.layers)) * self.sizes.b
        formula = f"{rows} rows x {longest:,} tokens x keys and values of all layers x b"
        choice = rows * self.sizes.vocabulary * _CHOICE
        return (
            Part("cache", size, formula, f"{_ROWS} or {_RESPONSE}"),
            Part("choice of a token", choice, f"{rows} rows x vocabulary x {_CHOICE}", _ROWS),
        )

    # -- the passes -------------------------------------------------------------------------------

    def _forward(self, tokens: _Pass, lower: str = _MICRO) -> tuple[Part, ...]:
        """Without gradients, what one layer holds at once."""
        s = self.sizes
        units = 3 * s.units + 5 * s.hidden
        if s.experts:
            units = s.experts * (4 * s.units + 2 * s.hidden) + 3 * s.hidden
        numbers = max(units, 2 * s.hidden + 4 * s.queries + 4 * s.keys)
        size = numbers * s.b
        if s.adapters and s.trained_b != s.b and not s.experts:
            size += 2 * s.units * s.trained_b  # what the adapters add, and what they are given
        made = tokens.tokens * size
        formula = f"{tokens.tokens:,} tokens x {size:,}"
        return (
            Part("one layer", made, formula, lower),
            *self._squares(tokens, 10 * s.heads, 1 + s.b, lower),
        )

    def _layer(self) -> int:
        """Bytes a token that one layer keeps for its backward pass.

        Norms keep what they widened and what they normed, products their inputs.
        """
        s = self.sizes
        size = s.norms * s.hidden * (4 + s.b) + 2 * s.hidden * s.b
        size += (2 * s.queries + 2 * s.keys) * s.b
        if s.normed:
            size += (s.queries + s.keys) * (4 + s.b)
        size += (s.experts * (2 * s.hidden + 4 * s.units) if s.experts else 4 * s.units) * s.b
        if s.adapters:
            # Frozen norms keep less; adapters in another dtype keep copies of what they are given.
            normed = s.norms * s.hidden + (s.queries + s.keys if s.normed else 0)
            size += s.ranks * s.trained_b - normed * s.b
            if s.trained_b != s.b:
                inputs = 2 * s.hidden + s.queries + (0 if s.experts else s.units)
                size += s.adapted * s.trained_b - inputs * s.b
        return size

    def _saved(self) -> tuple[Part, ...]:
        """What the student's pass keeps for the backward pass."""
        s, tokens = self.sizes, self.student
        last = tokens.tokens * (s.hidden * (4 + 2 * s.b) + 16)
        if self.run.model.gradient_checkpointing:
            size = tokens.tokens * s.layers * s.hidden * s.b + last
            return (
                Part(
                    "activations", size, f"{tokens.tokens:,} tokens x layers x hidden x b", _MICRO
                ),
            )
        size = tokens.tokens * s.layers * self._layer() + last
        formula = f"{tokens.tokens:,} tokens x layers x {self._layer():,}"
        return (Part("activations", size, formula, _CHECKPOINT), *self._kept_squares(s.layers))

    def _kept_squares(self, layers: int) -> tuple[Part, ...]:
        s = self.sizes
        each = s.heads * (4 + (s.b if s.b < 4 else 0))
        return self._squares(self.student, layers * each, layers * (1 + s.b), _MICRO)

    def _squares(self, tokens: _Pass, eager: int, mask: int, lower: str) -> tuple[Part, ...]:
        """Matrices of length x length: weights of eager attention, masks where rows are padded."""
        if self.sizes.attention == "eager":
            size = tokens.square * eager
            return (
                Part(
                    "attention", size, f"length^2 x rows x {eager} (eager)", "model.attention sdpa"
                ),
            )
        if self.sizes.attention != "sdpa" or not tokens.padded:
            return ()
        return (Part("mask", tokens.padded * mask, f"length^2 x rows x {mask}, if padded", lower),)

    def _states(self) -> Part:
        """What goes into the head: the student's, its gradient, the teacher's."""
        copies = 3 if self.distilled or self.anchored else 2
        size = self.responses * self.sizes.hidden * self.sizes.b * copies
        return Part(
            "hidden states", size, f"{self.responses:,} tokens x hidden x {copies} x b", _MICRO
        )

    def _head(self) -> Part:
        s, numbers = self.sizes, self.run.train.chunk_tokens * self.sizes.vocabulary
        numbers = min(numbers, self.responses * s.vocabulary)
        each, block = self._logits()
        size = numbers * each + min(numbers, _BLOCK) * block
        formula = (
            f"chunk x vocabulary x {each}, and a block x {block}"
            if block
            else (f"chunk x vocabulary x {each}")
        )
        if not s.adapters:
            size += s.vocabulary * s.hidden * (4 + s.b)
            formula += "; the head's gradient"
        return Part("loss head", size, formula, "train.chunk_tokens")

    def _logits(self) -> tuple[int, int]:
        """Bytes a logit of a chunk, and of a block of them that is widened."""
        method = self.run.method
        if self.anchored:
            return 49, 0  # their divergence looks at all tokens
        if not isinstance(method, DistillConfig):
            return 17, 0
        every = method.top_k is None or method.top_k >= self.sizes.vocabulary
        if every or method.support == "full":
            return 49, 0
        return (8, 13) if method.support == "both" else (8, 9)

    def _back(self) -> tuple[Part, ...]:
        """The gradients that pass, and with checkpointing the layer that is computed again."""
        s, tokens = self.sizes, self.student
        units = s.experts * (s.units + s.hidden) if s.experts else s.units
        passing = tokens.tokens * (12 * s.hidden + units * s.b)
        found = [
            Part(
                "passing gradients", passing, f"{tokens.tokens:,} tokens x hidden x 12 ...", _MICRO
            )
        ]
        if self.run.model.gradient_checkpointing:
            again = tokens.tokens * self._layer()
            formula = f"{tokens.tokens:,} tokens x {self._layer():,}"
            found += [Part("one layer again", again, formula, _MICRO), *self._kept_squares(1)]
        if s.attention == "eager":
            size = tokens.square * 8 * s.heads
            found.append(Part("gradient of attention", size, "length^2 x rows x heads x 8", _MICRO))
        if self.n > 1 and not s.adapters:
            size = s.largest_layer * (s.b + 4)
            found.append(
                Part("a layer's gradient", size, "one layer x (b + 4), before it is shared")
            )
        return tuple(found)

    def _step(self) -> Part:
        """AdamW takes all weights at once on a GPU, one after the other on a CPU."""
        s = self.sizes
        if self.device == "cpu":
            return Part("AdamW", 2 * s.largest * s.wide, "largest weight x 2 x 4")
        share = f" / {self.n}" if self.n > 1 else ""
        return Part("AdamW", s.trained * s.wide // self.n, f"trained x {s.wide}{share}")

    def _saving(self) -> Part:
        """Merged adapters are a copy; on a CPU what was saved is loaded again beside the model."""
        s = self.sizes
        numbers = s.merged + (s.bare if self.device == "cpu" else 0)
        return Part("copies", numbers * s.b, f"{numbers:,} parameters x b")


def _sum(parts: tuple[Part, ...]) -> int:
    return sum(part.bytes for part in parts)
