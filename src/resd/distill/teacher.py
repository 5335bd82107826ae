"""The self-teacher pi_old: which weights score the student's tokens (paper, Algorithm 1 line 6).

`frozen` keeps the initial weights, `ema` follows the student slowly, `live` is the student itself.
A parameter-efficient (peft) student, recognised by its `disable_adapter`, needs no second copy of
the model: frozen turns the adapter off, ema swaps in its own adapter weights. Weights that are
sharded over several processes are as good as others.

Build a teacher from the bare student, not from a wrapper (DDP, compiled) around it, and give
`update` its weights by the same names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

TeacherKind = Literal["frozen", "ema", "live"]
Copy = Callable[[nn.Module], nn.Module]


class Teacher(Protocol):
    """What the training loop asks of a teacher."""

    def model(self) -> AbstractContextManager[nn.Module]:
        """Lend a module that carries the teacher's weights, in eval mode and without gradients.

        The module may be the student itself: use it only inside the context, and do not step the
        optimiser there. The student is as before afterwards, also when the body raises.
        """

    @property
    def fixed(self) -> bool:
        """Whether its weights never change."""

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Follow the student's weights; call it after every finite optimiser step."""

    def rebase(self, weights: Mapping[str, Tensor]) -> None:
        """Become the student, whose weights by name these are."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold: references, as `nn.Module.state_dict` does."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict`. Raises ValueError for names or shapes that do not match."""


class LiveTeacher:
    """The student as it is now."""

    fixed = False

    def __init__(self, student: nn.Module) -> None:
        """Keep a reference to the student."""
        self._student = student

    @contextmanager
    def model(self) -> Iterator[nn.Module]:
        """Lend the student in eval mode."""
        with scoring(self._student):
            yield self._student

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Do nothing: the student is the teacher."""

    def rebase(self, weights: Mapping[str, Tensor]) -> None:
        """Do nothing: the student is the teacher."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: the student has its own checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Accept the empty state only."""
        _copy_into({}, state)


class FrozenTeacher:
    """The initial weights: a copy, or for a peft student the base model with the adapter off.

    No checkpoint holds it: a run that resumes starts from the same initial model.
    """

    fixed = True

    def __init__(self, student: nn.Module, copy: Copy | None = None) -> None:
        """Copy the student, or keep a reference to a peft student; `copy` as in `make_teacher`."""
        self._peft = is_peft(student)
        self._model = student if self._peft else (copy or _detached_copy)(student)

    @contextmanager
    def model(self) -> Iterator[nn.Module]:
        """Lend the initial model in eval mode."""
        if not self._peft:
            with torch.no_grad():
                yield self._model
            return
        student: Any = self._model
        # The adapter first: switching it may touch the modes that `scoring` restores.
        with student.disable_adapter(), scoring(self._model):
            yield self._model

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Do nothing: frozen."""

    def rebase(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse: no checkpoint would hold what it became. Raises RuntimeError."""
        raise RuntimeError("a teacher that is to be rebased must be made so")

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: it never moves."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Accept the empty state only."""
        _copy_into({}, state)


class EmaTeacher:
    """An exponential moving average of the student: `old <- (1-rate) * old + rate * student`.

    The average is kept in float32 at least, whatever the model's dtype: bfloat16 has eight bits of
    precision and would drop every step of a rate of 1e-4. (float32 has its end too: it drops steps
    while `rate * |student - old|` is under half a unit in the last place, about 3e-4 of the weight
    itself at that rate.)
    """

    fixed = False

    def __init__(
        self,
        student: nn.Module,
        rate: float,
        weights: Mapping[str, Tensor] | None = None,
        copy: Copy | None = None,
    ) -> None:
        """Start the average at the student's weights (of a peft student: its adapter's).

        Args:
            student: the bare student.
            rate: in (0, 1]. An average that never moves must be asked for as `FrozenTeacher`.
            weights: the student's wide weights by name, where it computes in a narrower dtype.
            copy: as in `make_teacher`.

        Raises:
            ValueError: for a rate outside (0, 1], or a student without anything to average.
        """
        self._check(rate)
        self.rate = rate
        self._peft = is_peft(student)
        self._model = student if self._peft else (copy or _detached_copy)(student)
        trained = {name for name, weight in student.named_parameters() if weight.requires_grad}
        # Where the weights already are float32, the copy's own tensors hold the average.
        self._average = {
            name: _widened(parameter.detach(), always_copy=self._peft)
            for name, parameter in self._model.named_parameters()
            if name in trained and parameter.is_floating_point()
        }
        # The copy's weights that do not hold the average themselves, but a rounded one.
        self._rounded = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if name in self._average and parameter.dtype != self._average[name].dtype
        }
        if not self._average:
            raise ValueError("the student has no parameter to average")
        with torch.no_grad():
            for name in self._average.keys() & (weights or {}).keys():
                self._average[name].copy_((weights or {})[name])

    def _check(self, rate: float) -> None:
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"rate must be in (0, 1], got {rate}; use a frozen teacher for 0")

    @contextmanager
    def model(self) -> Iterator[nn.Module]:
        """Lend the averaged model in eval mode."""
        if not self._peft:
            with torch.no_grad():
                yield self._model
            return
        with scoring(self._model), _swapped_in(self._model, self._average):
            yield self._model

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Move the average towards the student's weights, given by name.

        Raises:
            ValueError: if a parameter of the average is missing.
        """
        self._move(weights, self.rate)

    @torch.no_grad()
    def rebase(self, weights: Mapping[str, Tensor]) -> None:
        """Become the student. Raises ValueError as `update`."""
        self._move(weights, 1.0)

    def _move(self, weights: Mapping[str, Tensor], rate: float) -> None:
        missing = sorted(self._average.keys() - weights.keys())
        if missing:
            raise ValueError(f"{missing[0]!r} is not in the student; pass the unwrapped model")
        for name, average in self._average.items():
            average.lerp_(weights[name].detach().to(average), rate)
        self._publish()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average in its own precision."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average."""
        _copy_into(self.state_dict(), state)
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        """Round the average into the copied model, where that has another dtype."""
        if self._peft:  # done for the time of use only, the model is the student's
            return
        for name, parameter in self._rounded.items():
            parameter.copy_(self._average[name])


class HeldTeacher(EmaTeacher):
    """Frozen, but where it is told to become the student: at the boundaries of a stream.

    Its weights are in every checkpoint, for no other model holds them.
    """

    fixed = True  # within a batch, which is all that is asked

    def __init__(
        self,
        student: nn.Module,
        weights: Mapping[str, Tensor] | None = None,
        copy: Copy | None = None,
    ) -> None:
        """Start as the student; see `EmaTeacher`."""
        super().__init__(student, 0.0, weights, copy)

    def _check(self, rate: float) -> None:
        pass

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Do nothing: frozen."""


def make_teacher(
    kind: TeacherKind,
    student: nn.Module,
    rate: float = 1e-4,
    weights: Mapping[str, Tensor] | None = None,
    copy: Copy | None = None,
    *,
    rebased: bool = False,
) -> Teacher:
    """Build the teacher that the configuration names; only `ema` uses `rate` and `weights`.

    Args:
        kind: which.
        student: the bare student.
        rate: of the average.
        weights: see `EmaTeacher`.
        copy: makes the frozen copy of a student that carries no adapter, in eval mode, with the
            same names; `copy.deepcopy` by default, which sharded models refuse.
        rebased: whether `rebase` is going to be called.

    Raises:
        ValueError: for an unknown kind, or a rate that the ema teacher rejects.
    """
    if kind == "frozen" and rebased:
        return HeldTeacher(student, weights, copy)
    if kind == "frozen":
        return FrozenTeacher(student, copy)
    if kind == "ema":
        return EmaTeacher(student, rate, weights, copy)
    if kind == "live":
        return LiveTeacher(student)
    raise ValueError(f"teacher kind must be one of {get_args(TeacherKind)}, got {kind!r}")


def is_peft(model: nn.Module) -> bool:
    """Tell whether the model carries an adapter that can be turned off."""
    return callable(getattr(model, "disable_adapter", None))


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode without gradients, then restore each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _swapped_in(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the named parameters hold `tensors`, in their own dtype, for the time of the context.

    `.data` is re-pointed, nothing is written: the student's tensors return bit for bit, and a
    graph recorded before can still run its backward pass afterwards. Shards are written over and
    back: re-pointed, they would still be gathered from where they were.
    """
    parameters = dict(model.named_parameters())
    if any(hasattr(parameters[name], "to_local") for name in tensors):
        with _written_over(parameters, tensors):
            yield
        return
    own = {name: parameters[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            parameters[name].data = tensor.to(own[name])
        yield
    finally:
        for name, tensor in own.items():
            parameters[name].data = tensor


@contextmanager
def _written_over(
    parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Iterator[None]:
    own = {name: parameters[name].detach().clone() for name in tensors}
    try:
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameters[name].copy_(tensor)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in own.items():
                parameters[name].copy_(tensor)


def _detached_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False).eval()


def _widened(tensor: Tensor, *, always_copy: bool) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=always_copy)


@torch.no_grad()
def _copy_into(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Write a saved state over one's own tensors, all of it or nothing."""
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"the saved teacher does not fit this one: {', '.join(wrong[:5])}")
    for name, tensor in own.items():
        tensor.copy_(state[name])
