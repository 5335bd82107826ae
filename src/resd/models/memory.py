"""How much memory a run needs, part by part and moment by moment, from the architecture alone.

What is there all the time (weights, optimiser, teacher) is exact: the model is built
without storage and its parameters are counted. What comes and goes (`resd.models.moments`) is
taken at its largest, for the longest sequences that the settings allow. Each part says how it is
made up; b is bytes a number of the compute dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resd.config import DistillConfig, RunConfig
from resd.engines.vllm import CPU_CACHE, GPU_SHARE
from resd.models.moments import Part, fewer_trained, moments
from resd.models.sizes import Sizes, architecture, skeleton

GB = 10**9
# Memory of common cards. A card of 80 GB has some 85 * 10^9 bytes: the rest is CUDA's own.
CARDS = (24, 48, 80, 141)
# Several processes are looked for on cards of these sizes.
_SHARED_CARDS = (80, 141)
PROCESSES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Estimate:
    """The memory of one process of a run.

    Attributes:
        kept: what is there all the time.
        moments: what comes on top at each moment, never two of them at once.
        host: what is in host memory beside a device, all processes together.
        parameters: of the model, without adapters.
        trained: of those that are trained.
        processes: that share the run.
        beside: the share of the device that vLLM takes in the same process.
        sleeps: vLLM takes it while it generates alone, beside what is there all the time.
        copy: bytes of vLLM's own weights, which lie in its share.
    """

    kept: tuple[Part, ...]
    moments: Mapping[str, tuple[Part, ...]]
    host: tuple[Part, ...]
    parameters: int
    trained: int
    processes: int = 1
    beside: float = 0.0
    sleeps: bool = True
    copy: int = 0

    @property
    def base(self) -> int:
        """Bytes that are there all the time."""
        return sum(part.bytes for part in self.kept)

    @property
    def certain(self) -> int:
        """Bytes that any update needs, however short its sequences are: with gradients."""
        step = self.moments["optimiser step"]
        return self.base + sum(part.bytes for part in step if part.name == "gradients")

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        return self.base + max(map(self.at, self.moments), default=0)

    @property
    def worst(self) -> str:
        """The worst moment."""
        return max(self.moments, key=self.at)

    def card(self) -> int | None:
        """GB of the smallest common card that holds a process, if one does."""
        return next((card for card in CARDS if self.fits(card * GB)), None)

    def fits(self, room: int) -> bool:
        """Whether a device of so many bytes holds it, and vLLM beside it."""
        left = room * (1 - self.beside)
        holds = self.total <= (room if self.sleeps else left) and self.base <= left
        return holds and self.copy <= room * self.beside

    @property
    def vllm(self) -> str:
        """What vLLM takes of a device, in words; empty if there is none beside it."""
        if not self.beside:
            return ""
        when = "while it generates" if self.sleeps else "all the time"
        weights = f"{self.copy / GB:.1f} GB of it its weights"
        return f"{self.beside:.0%} (engine.memory) {when}, {weights}"

    def at(self, moment: str) -> int:
        """Bytes that come on top at a moment."""
        return sum(part.bytes for part in self.moments[moment])

    def advice(self, parts: Sequence[Part] = ()) -> str:
        """Settings that make it less, those of the largest parts first; of all by default."""
        there = parts or (*self.kept, *self.moments[self.worst])
        ordered = sorted(there, key=lambda part: -part.bytes)
        found = dict.fromkeys(part.lower for part in ordered if part.lower and part.bytes)
        return ", ".join(list(found)[:3]) or "a smaller model"


@dataclass(frozen=True)
class Plan:
    """Cards that hold a run.

    Attributes:
        estimate: of each process.
        card: GB of each card.
    """

    estimate: Estimate
    card: int

    def __str__(self) -> str:
        number = self.estimate.processes
        if number == 1:
            return f"{_shown(self.estimate.total)} GB, one GPU of {self.card} GB"
        return f"{_shown(self.estimate.total)} GB on each of {number} GPUs of {self.card} GB"


class Memory:
    """The memory of a run, for any number of processes.

    Args:
        run: the settings.
        model: its skeleton, if there is one already.

    Raises:
        UserError: the model's architecture is not known, or the settings do not fit it.
    """

    def __init__(self, run: RunConfig, model: Any = None) -> None:
        self.run = run
        if model is None:
            model = skeleton(architecture(run.model.path), run.model)
        self.sizes = Sizes.of(run.model, model)

    def estimate(self, processes: int = 1, device: str = "cuda") -> Estimate:
        """What each process needs.

        Args:
            processes: one to a device; above one they share weights, gradients, optimiser and
                teacher (FSDP2), and each holds the whole model while it generates.
            device: the kind; AdamW takes more at once on a GPU.
        """
        sizes = self.sizes
        kept, host = self._kept(processes)
        kept = tuple(part for part in kept if part.bytes or part.name == "teacher")
        coming = moments(self.run, sizes, processes, device, sum(part.bytes for part in kept))
        if self.run.checkpoint.background:
            written = self._checkpoint(processes if device == "cpu" else 1)
            if device == "cpu":
                coming = {**coming, "checkpoint": (written,)}
            else:
                host = (*host, written)
        counts = sizes.bare, sizes.trained, processes
        if self.run.engine.kind != "vllm":
            return Estimate(kept, coming, host, *counts)
        copy, engine = sizes.bare * sizes.b, self.run.engine
        if device == "cpu" and engine.memory is None:
            ours = Part("vLLM", copy + CPU_CACHE, "parameters x b, and its cache")
            return Estimate((*kept, ours), coming, host, *counts)
        sleeps = device != "cpu" and engine.sleep is not False
        return Estimate(kept, coming, host, *counts, engine.memory or GPU_SHARE, sleeps, copy)

    def plan(self) -> Plan | None:
        """The smallest card that holds the run, or the least number of larger ones; or None."""
        one = self.estimate(1)
        card = one.card()
        if card is not None:
            return Plan(one, card)
        shared = [self.estimate(number) for number in PROCESSES]
        for card in _SHARED_CARDS:
            for each in shared:
                if each.fits(card * GB):
                    return Plan(each, card)
        return None

    def _kept(self, n: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        sizes, share = self.sizes, f" / {n}" if n > 1 else ""
        frozen = sizes.bare if sizes.adapters else sizes.bare - sizes.trained
        fewer = fewer_trained(sizes)
        half = "model.compute_dtype bfloat16" if sizes.b == 4 else ""
        trained = sizes.trained * sizes.wide
        teacher, host = self._teacher(n)
        if n == 1:
            narrow = sizes.trained_b < sizes.wide
            weights = frozen * sizes.b + sizes.trained * sizes.trained_b
            first: tuple[Part, ...] = (
                Part("weights", weights, "parameters x b", half),
                Part("master copy", trained * narrow, f"trained x {sizes.wide}", fewer),
            )
        else:
            whole = frozen * sizes.stored + trained
            first = (Part("weights", whole // n, f"as stored{share}", "more processes"),)
            host = (*host, Part("model, gathered to save", sizes.bare * sizes.stored, "rank 0"))
        return (
            *first,
            Part("optimiser", 2 * trained // n, f"trained x 2 x {sizes.wide}{share}", fewer),
            teacher,
            self._anchors(),
        ), host

    def _checkpoint(self, n: int) -> Part:
        """Copies of what moves, while they are written; all processes' unless `n` divides them."""
        size = 3 * self.sizes.trained * self.sizes.wide + self._moving_teacher()
        return Part(
            "copy for a checkpoint", size // n, "trained weights, optimiser, moving teacher"
        )

    def _moving_teacher(self) -> int:
        method = self.run.method
        moves = isinstance(method, DistillConfig) and (
            method.teacher.kind == "ema" or _rebased(method)
        )
        return self.sizes.trained * 4 * moves

    def _anchors(self) -> Part:
        """The initial model's head, and its hidden states of the answers; whole in each process."""
        sizes, anchors = self.sizes, self.run.method.anchors
        left = max(0, len(self.run.stream) - 1) if anchors.earlier else 0
        answers = anchors.number + left * anchors.earlier
        heads = 1 + (0 if sizes.adapters else left)  # a head that is trained is another each time
        tokens = answers * anchors.max_new_tokens
        size = (heads * sizes.vocabulary + tokens) * sizes.hidden * sizes.b * bool(anchors.weight)
        heads_text = f"{heads} x vocabulary" if heads > 1 else "vocabulary"
        formula = f"({heads_text} + {answers} answers x {anchors.max_new_tokens} tokens)"
        return Part("anchors", size, f"{formula} x hidden x b", "method.anchors.number")

    def _teacher(self, n: int) -> tuple[Part, tuple[Part, ...]]:
        method, sizes, share = self.run.method, self.sizes, f" / {n}" if n > 1 else ""
        if not isinstance(method, DistillConfig) or method.teacher.kind == "live":
            return Part("teacher", 0, "none of its own"), ()
        frozen = method.teacher.kind == "frozen" and not _rebased(method)
        lower = "adapters (model.lora.rank 16)"
        if sizes.adapters and frozen:
            return Part("teacher", 0, "the student, adapters off"), ()
        if sizes.adapters:
            return Part("teacher", sizes.trained * 4 // n, f"adapters' average x 4{share}"), ()
        if n == 1:
            size, formula = sizes.bare * sizes.b, "parameters x b"
            if not frozen and sizes.b < 4:
                size += sizes.trained * 4
                formula = "average: trained x 4, and parameters x b"
            return Part("teacher", size, formula, lower), ()
        size = sizes.bare * sizes.stored
        if method.teacher.offload:
            return Part("teacher", 0, "in host memory"), (Part("teacher", size, "parameters x 4"),)
        formula = f"parameters x {sizes.stored}{share}"
        return Part("teacher", size // n, formula, "method.teacher.offload true"), ()


def _rebased(method: DistillConfig) -> bool:
    """Whether a frozen teacher becomes another one at boundaries, and so needs a copy."""
    return method.teacher.kind == "frozen" and method.teacher.at_boundary == "rebase"


def first_line(run: RunConfig) -> str:
    """What a preset's first line says of its memory."""
    found = Memory(run).plan()
    return f"# Memory (resd doctor): {found or 'more than 64 GPUs of 141 GB hold'}."


def _shown(size: int) -> str:
    return f"{size / GB:.0f}" if size >= 10 * GB else f"{size / GB:.1f}"


def as_rows(found: Estimate) -> dict[str, Any]:
    """An estimate as plain numbers of bytes."""
    return {
        "processes": found.processes,
        "parameters": found.parameters,
        "trained": found.trained,
        "kept": {part.name: part.bytes for part in found.kept},
        "moments": {
            moment: {part.name: part.bytes for part in parts}
            for moment, parts in found.moments.items()
        },
        "host": {part.name: part.bytes for part in found.host},
        "total": found.total,
        "vllm_share": found.beside,
        "worst": found.worst,
    }
