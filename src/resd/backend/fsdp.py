"""Several processes that share one model: PyTorch's `fully_shard`, started by torchrun.

Weights, gradients, optimiser and a teacher of its own are sharded over the processes; master
weights are float32, forward and backward run in the compute dtype. gloo on CPUs, NCCL on GPUs.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)

from resd.backend import tensors as files
from resd.backend.base import Source
from resd.backend.stopped import end_at_sigterm, leave
from resd.backend.tensors import whole_tensor
from resd.errors import LostProcessError, ProcessError, UserError, one_line
from resd.models.wrapped import bare, decoder_layers

T = TypeVar("T")
R = TypeVar("R")

# What gloo and NCCL say when a peer is gone.
_GONE = ("Connection closed by peer", "Connection reset", "Broken pipe", "remote process exited")
# A process may evaluate or load for so long while the others wait for it.
_TIMEOUT = timedelta(hours=2)


class Sharded:
    """One of several processes.

    Args:
        device: as `model.device`.

    Raises:
        UserError: a GPU is missing for this process, or the processes do not find each other.
    """

    casts = True

    def __init__(self, device: str = "auto") -> None:
        self.device = _device(device)
        self._objects, self._saving = _groups(self.device.type)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._mesh = init_device_mesh(self.device.type, (self.world,))
        # One of them says it, and at least one of these two is still there.
        end_at_sigterm(says=self.rank <= 1)

    @property
    def main(self) -> bool:
        """Whether this process writes, shows and asks."""
        return self.rank == 0

    # -- weights ----------------------------------------------------------------------------

    def placed(self, source: Source) -> Any:
        """This process's share of the model."""
        return self._placed(source)

    def frozen(self, model: Any, source: Source, *, offload: bool) -> Any:
        """Read again: what is sharded cannot be copied, and not all of it is here."""
        return self._placed(source, frozen=True, offload=offload).eval()

    def gathered(self, model: Any, source: Source) -> Any | None:
        """Another model in the host's memory of process 0, weight by weight."""
        whole = named = None
        if self.main:
            whole = source.whole(on_host=True)
            named = dict(whole.named_parameters())
        with torch.no_grad():
            for name, tensor in self.tensors(model):
                if named is not None:
                    named[name].copy_(tensor)
        return whole

    def _placed(self, source: Source, *, frozen: bool = False, offload: bool = False) -> Any:
        stored = self.on_main_alone(source.stored)
        model = source.empty()
        if frozen:
            model.requires_grad_(False)
        return self.shard(model, source.compute, stored, offload=offload)

    def shard(
        self,
        model: Any,
        compute: torch.dtype | None,
        stored: Any = None,
        *,
        offload: bool = False,
    ) -> Any:
        """Spread a model's weights over the processes, layer by layer, in place.

        No process but the first, which reads them, ever holds more than one layer whole.
        Embedding, last norm and head stay in the root group: after a forward pass the root is
        whole, so that the loss can call the head chunk by chunk.

        Args:
            model: on the meta device.
            compute: what forward and backward run in.
            stored: the same model with its weights, on process 0.
            offload: keep this process's share in the host's memory.

        Raises:
            UserError: the architecture has no list of layers.
        """
        policy: dict[str, Any] = {
            "mesh": self._mesh,
            "mp_policy": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32),
        }
        if offload:
            pinned = self.device.type != "cpu"
            policy["offload_policy"] = CPUOffloadPolicy(pin_memory=pinned)
        # The root is the model under any adapters: peft's generate() calls it by itself.
        root = bare(model)
        known = dict(bare(stored).named_modules()) if stored is not None else {}
        filled: dict[Tensor, torch.nn.Parameter] = {}  # tied weights are one
        layers = decoder_layers(root)
        if not layers:
            raise UserError(
                f"model.path: {type(root).__name__} has no list of layers that could be spread "
                "over several processes; train it in one"
            )
        for name, module in root.named_modules():
            if module in layers:
                for inner, part in module.named_modules(prefix=name):
                    self._fill(part, known.get(inner), filled)
                fully_shard(module, **policy)
        for name, module in root.named_modules():
            self._fill(module, known.get(name), filled)
        fully_shard(root, **policy)
        return model

    def _fill(
        self, module: torch.nn.Module, source: Any, filled: dict[Tensor, torch.nn.Parameter]
    ) -> None:
        """Give a module on the meta device the weights and buffers of process 0."""
        for name, empty in list(module._parameters.items()):
            if empty is None or not empty.is_meta:
                continue
            if empty not in filled:
                own = getattr(source, name).detach() if self.main else None
                tensor = self._sent(empty, own, empty.dtype)
                filled[empty] = torch.nn.Parameter(tensor, requires_grad=empty.requires_grad)
            module._parameters[name] = filled[empty]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                own = getattr(source, name) if self.main else None
                dtype = self.told(own.dtype if own is not None else None)
                module._buffers[name] = self._sent(buffer, own, dtype or buffer.dtype)

    def _sent(self, like: Tensor, own: Tensor | None, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(like.shape, dtype=dtype, device=self.device)
        if own is not None:
            tensor.copy_(own)
        dist.broadcast(tensor, src=0)
        return tensor

    @contextmanager
    def whole(self, model: Any) -> Iterator[Any]:
        """All weights on every process, so that each can generate at its own pace."""
        parts = _parts(model)
        try:
            for part in parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            yield model
        finally:
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(part is not bare(model), recurse=False)

    @contextmanager
    def ready(self, model: Any) -> Iterator[Any]:
        """The root's weights, then none: left whole they would go stale at the next update."""
        root = bare(model)
        if isinstance(root, FSDPModule):
            root.unshard()
        try:
            yield model
        finally:
            if isinstance(root, FSDPModule):
                root.reshard()

    def tensors(self, model: Any) -> Iterator[tuple[str, Tensor]]:
        """Whole weights by name, one at a time; all processes iterate together."""
        for name, parameter in model.named_parameters():
            yield name, whole_tensor(parameter.detach())

    # -- work -------------------------------------------------------------------------------

    def share(self, costs: Sequence[float]) -> list[int | None]:
        """Spread work by its costs, the dearest first; all have as many turns."""
        loads = [0.0] * self.world
        parts: list[list[int]] = [[] for _ in range(self.world)]
        for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            to = min(range(self.world), key=lambda rank: (loads[rank], rank))
            parts[to].append(i)
            loads[to] += costs[i]
        mine: list[int | None] = [*sorted(parts[self.rank])]
        return mine + [None] * (max(map(len, parts)) - len(mine))

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], R]) -> list[R]:
        """Each process works on every world-th item; all get all results, or the first error."""
        return self._all(lambda: work(items[self.rank :: self.world]))

    def together(self, work: Callable[[], R]) -> R:
        """Every process works; an error in one is an error in all."""
        kept: list[R] = []
        self._all(lambda: kept.append(work()))
        return kept[0]

    def on_main(self, work: Callable[[], R]) -> R:
        """Process 0 works."""
        return self._all(lambda: work() if self.main else None)[0]  # type: ignore[return-value]

    def on_main_alone(self, work: Callable[[], R]) -> R | None:
        """Process 0 works, and keeps what comes of it."""
        return self.together(lambda: work() if self.main else None)

    def _all(self, work: Callable[[], R]) -> list[R]:
        result: R | None = None
        error: str | None = None
        try:
            result = work()
        except UserError as failure:
            error = str(failure)
        except Exception as failure:
            traceback.print_exc()
            error = f"{type(failure).__name__}: {one_line(str(failure))}"
        found = self._gather((result, error))
        for rank, (_, failed) in enumerate(found):
            if failed is not None:
                everywhere = all(other == failed for _, other in found)
                where = "" if rank == 0 or everywhere else f"process {rank} of {self.world}: "
                raise ProcessError(f"{where}{failed}")
        return [value for value, _ in found]  # type: ignore[misc]

    def backward(self, loss: Tensor) -> None:
        """Gradients are averaged over the processes; the loss is a share of a sum."""
        with _listening():
            (loss * self.world).backward()

    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes, in the order of their ranks: the same bits on all."""
        found = self._gather(dict(numbers))
        names = dict.fromkeys(name for row in found for name in row)
        return {name: sum(row.get(name, 0.0) for row in found) for name in names}

    def agree(self, what: str, state: Callable[[], str]) -> None:
        """Hold a state against the other processes'."""
        digest = hashlib.sha256(state().encode()).hexdigest()
        if len(set(self._gather(digest))) > 1:
            raise ProcessError(
                f"{what} differs between the processes: the environment or a library gives them "
                "different answers to the same question; go on from the last checkpoint with "
                "resd train --resume RUN in one process, and report it"
            )

    def told(self, value: T) -> T:
        """What process 0 holds."""
        box = [value]
        with _listening():
            dist.broadcast_object_list(box, src=0, group=self._objects)
        return box[0]

    def _gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.world
        with _listening():
            dist.all_gather_object(found, value, group=self._objects)
        return found

    # -- checkpoints ------------------------------------------------------------------------

    def save(self, place: Path, tensors: Mapping[str, Any]) -> None:
        """Write nested tensors by name; each process its shards, process 0 the table of them."""
        # Process 0 makes the directory anew: one that another made meanwhile is in its way.
        with _listening():
            dist.barrier(group=self._saving)
        files.write(place, tensors, process_group=self._saving)

    def load(self, place: Path, tensors: Mapping[str, Any]) -> None:
        """Read `save` in place, with any number of processes."""
        files.read(place, tensors, process_group=self._saving)

    def names(self, place: Path) -> set[str]:
        """Dotted names of what `save` wrote."""
        return files.names(place)

    def copied(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of this process's shards."""
        return files.copied(tensors)

    def close(self) -> None:
        """The processes stay together until they end: a program may train several models."""


@contextmanager
def _listening() -> Iterator[None]:
    """Say in words that another process does not answer any more."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in _GONE):
            raise
        leave()
        raise LostProcessError(
            "another process has ended; what was learnt up to the last checkpoint is kept: see "
            "what that process said, then go on with --resume RUN, with any number of processes"
        ) from None


@lru_cache(maxsize=1)
def _groups(device: str) -> tuple[Any, Any]:
    """Groups for objects and small numbers, and for checkpoints.

    They travel over the CPU, beside what the weights need. Checkpoints are written in the
    background, and must share a group with nothing else.
    """
    if not dist.is_initialized():
        try:
            dist.init_process_group(
                "gloo" if device == "cpu" else f"cpu:gloo,{device}:nccl", timeout=_TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the processes do not find each other: {one_line(str(error))}"
            ) from None
        atexit.register(dist.destroy_process_group)
    return (
        dist.new_group(backend="gloo", timeout=_TIMEOUT),
        dist.new_group(backend="gloo", timeout=_TIMEOUT),
    )


def _parts(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _device(name: str) -> torch.device:
    local = int(os.environ["LOCAL_RANK"])
    kind = name
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        kind = found.type if found is not None else "cpu"
    if ":" in kind:
        raise UserError(
            f"model.device {name}: torchrun gives every process a device of its own; write "
            f"{kind.split(':')[0]}"
        )
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    if local >= count:
        raise UserError(
            f"torchrun started process {local} on this machine, which has {count} {kind} devices; "
            f"use --nproc-per-node {count}"
        )
    torch.accelerator.set_device_index(local)
    return torch.device(kind, local)
