"""The seam to one or many processes, and the one process.

Every process runs the same loop on the same data and holds the same playbook. What is expensive
is shared (generation, environment, forward and backward passes) and what came of it is gathered,
so that all go on from the same state. Process 0 alone writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from resd.backend import tensors as files

T = TypeVar("T")
R = TypeVar("R")


class Source(Protocol):
    """A model that can be loaded, whole or in parts.

    Attributes:
        compute: what forward and backward run in; None for the weights' own dtype.
    """

    compute: torch.dtype | None

    def whole(self, *, on_host: bool = False) -> Any:
        """All of it, on the device of the run or in the host's memory."""
        ...

    def empty(self) -> Any:
        """Its modules on the meta device, without any number."""
        ...

    def stored(self) -> Any:
        """All of it in the host's memory, in the dtype of its files."""
        ...


class Backend(Protocol):
    """Processes that train one model.

    Attributes:
        rank: of this process; 0 writes.
        world: how many there are.
        casts: a placed model computes in `Source.compute` by itself, and its weights stay wide.
    """

    rank: int
    world: int
    casts: bool

    @property
    def main(self) -> bool:
        """Whether this process writes, shows and asks."""
        ...

    def placed(self, source: Source) -> Any:
        """The model, where this process trains it or its share of it.

        Raises:
            UserError: it cannot be loaded, or not be spread over several processes.
        """
        ...

    def frozen(self, model: Any, source: Source, *, offload: bool) -> Any:
        """A copy of a placed model that was not trained yet: in eval mode, without gradients.

        Args:
            model: what `placed` gave.
            source: where it is from.
            offload: keep each process's share in the host's memory; a layer is on the device
                while it computes.
        """
        ...

    def gathered(self, model: Any, source: Source) -> Any | None:
        """A placed model with all its weights of now, to be written; None on all processes but 0.

        All processes call it together.
        """
        ...

    def whole(self, model: Any) -> AbstractContextManager[Any]:
        """Lend a model with all its weights, for passes of this process alone (generation)."""
        ...

    def ready(self, model: Any) -> AbstractContextManager[Any]:
        """Lend a model whose head can be called by itself."""
        ...

    def tensors(self, model: Any) -> Iterator[tuple[str, Tensor]]:
        """Whole weights by name, one at a time; all processes iterate together."""
        ...

    def share(self, costs: Sequence[float]) -> list[int | None]:
        """Indices of the work that is this process's; None is a turn without work.

        All have as many turns: what they do together (gathering weights) must match.
        """
        ...

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], R]) -> list[R]:
        """What each process makes of its part of the items; `woven` puts results in order.

        Raises:
            ProcessError: `work` failed in one of the processes.
        """
        ...

    def together(self, work: Callable[[], R]) -> R:
        """Work that every process does by itself.

        Raises:
            ProcessError: it failed in one of the processes.
        """
        ...

    def on_main(self, work: Callable[[], R]) -> R:
        """Work that process 0 does; all get the result.

        Raises:
            ProcessError: it failed.
        """
        ...

    def on_main_alone(self, work: Callable[[], R]) -> R | None:
        """Work that process 0 does, and whose result it keeps; None elsewhere.

        Raises:
            ProcessError: it failed.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient; its weights are those of the whole batch."""
        ...

    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes; all must give the same names in any order."""
        ...

    def agree(self, what: str, state: Callable[[], str]) -> None:
        """Hold a state against the other processes'.

        Raises:
            ProcessError: they differ; going on would spoil the run in silence.
        """
        ...

    def told(self, value: T) -> T:
        """What process 0 holds."""
        ...

    def save(self, place: Path, tensors: Mapping[str, Any]) -> None:
        """Write nested tensors by name into a new directory; all write their part."""
        ...

    def load(self, place: Path, tensors: Mapping[str, Any]) -> None:
        """Read `save` into tensors of the same names, whatever the number of processes then."""
        ...

    def names(self, place: Path) -> set[str]:
        """Dotted names of what `save` wrote."""
        ...

    def copied(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The same tensors in the memory of the host, to be saved while training goes on."""
        ...

    def close(self) -> None:
        """Leave the group of processes."""
        ...


class Local:
    """One process: every method is the plain thing."""

    rank, world, main = 0, 1, True
    casts = False

    def placed(self, source: Source) -> Any:
        """The whole model."""
        return source.whole()

    def frozen(self, model: Any, source: Source, *, offload: bool) -> Any:
        """A copy of it; the host's memory is for several processes."""
        return copy.deepcopy(model).requires_grad_(False).eval()

    def gathered(self, model: Any, source: Source) -> Any | None:
        """The model itself."""
        return model

    def whole(self, model: Any) -> AbstractContextManager[Any]:
        """The model itself."""
        return nullcontext(model)

    def ready(self, model: Any) -> AbstractContextManager[Any]:
        """The model itself."""
        return nullcontext(model)

    def tensors(self, model: Any) -> Iterator[tuple[str, Tensor]]:
        """The model's parameters."""
        for name, parameter in model.named_parameters():
            yield name, parameter.detach()

    def share(self, costs: Sequence[float]) -> list[int | None]:
        """All of it."""
        return list(range(len(costs)))

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], R]) -> list[R]:
        """Work on all of them."""
        return [work(items)]

    def together(self, work: Callable[[], R]) -> R:
        """Do it."""
        return work()

    def on_main(self, work: Callable[[], R]) -> R:
        """Do it."""
        return work()

    def on_main_alone(self, work: Callable[[], R]) -> R | None:
        """Do it."""
        return work()

    def backward(self, loss: Tensor) -> None:
        """The plain backward pass."""
        loss.backward()

    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The numbers."""
        return dict(numbers)

    def agree(self, what: str, state: Callable[[], str]) -> None:
        """There is nobody to differ."""

    def told(self, value: T) -> T:
        """The value."""
        return value

    def save(self, place: Path, tensors: Mapping[str, Any]) -> None:
        """Write tensors into a directory, as one of many processes would."""
        files.write(place, tensors, no_dist=True)

    def load(self, place: Path, tensors: Mapping[str, Any]) -> None:
        """Read them again, also what many processes wrote."""
        files.read(place, tensors, no_dist=True)

    def names(self, place: Path) -> set[str]:
        """Dotted names of what `save` wrote."""
        return files.names(place)

    def copied(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of all of them."""
        return files.copied(tensors)

    def close(self) -> None:
        """There is nothing to leave."""


def woven(parts: Sequence[Sequence[T]]) -> list[T]:
    """Results that `spread` made, one for each item, in the order of the items."""
    number = sum(map(len, parts))
    return [parts[i % len(parts)][i // len(parts)] for i in range(number)]
