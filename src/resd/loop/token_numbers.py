"""What the update knows of the tokens of some responses, taken from its own chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from resd.methods.base import TokenNumbers, Top


@dataclass(frozen=True)
class Watched:
    """A response whose tokens are kept: its place in the batch, its tokens in the micro-batch."""

    place: int
    start: int
    end: int


@dataclass
class Watch:
    """Collects numbers, on the device until the step is over.

    Attributes:
        tokens: most of a response, the first ones.
        alternatives: likeliest tokens kept beside each.
    """

    tokens: int
    alternatives: int
    _parts: dict[int, list[list[torch.Tensor]]] = field(default_factory=dict)

    def chunk(
        self,
        watched: Sequence[Watched],
        span: slice,
        ids: torch.Tensor,
        now: torch.Tensor,
        loss: torch.Tensor,
        logits: torch.Tensor,
        teacher: torch.Tensor | None,
    ) -> None:
        """Keep what a chunk holds of the watched responses.

        Args:
            watched: of the micro-batch.
            span: tokens of the micro-batch that the chunk holds, n of them.
            ids: the tokens, [n].
            now: their log-probs under the student, [n].
            loss: theirs, before any weight of sample or batch, [n].
            logits: of the student, [n, V].
            teacher: the teacher's logits, [n, V], if there is one.
        """
        for item in watched:
            first = max(item.start, span.start)
            last = min(item.end, span.stop, item.start + self.tokens)
            if first >= last:
                continue
            rows = slice(first - span.start, last - span.start)
            with torch.no_grad():
                part = [ids[rows], now[rows], loss[rows], *self._top(logits[rows], None)]
                if teacher is not None:
                    part += self._top(teacher[rows], ids[rows])
            self._parts.setdefault(item.place, []).append([p.detach() for p in part])

    def _top(self, logits: torch.Tensor, ids: torch.Tensor | None) -> list[torch.Tensor]:
        """Log-probs of the likeliest tokens [n, k] and which they are; of `ids` [n] before them."""
        count = min(self.alternatives, logits.shape[-1])
        values, tokens = logits.topk(count, dim=-1)
        wide = torch.promote_types(logits.dtype, torch.float32)
        normal = logits.to(wide).logsumexp(dim=-1, keepdim=True)
        own = [] if ids is None else [(logits.gather(-1, ids[:, None]).to(wide) - normal)[:, 0]]
        return [*own, values.to(wide) - normal, tokens]

    def taken(self) -> dict[int, TokenNumbers]:
        """The numbers by place in the batch."""
        found = {}
        for place, parts in self._parts.items():
            columns = [torch.cat(column).tolist() for column in zip(*parts, strict=True)]
            ids, now, loss, values, tokens, *theirs = columns
            teacher, teacher_top = None, None
            if theirs:
                teacher, teacher_top = theirs[0], _pairs(theirs[2], theirs[1])
            found[place] = TokenNumbers(
                ids, now, loss, _pairs(tokens, values), teacher, teacher_top
            )
        return found


def _pairs(tokens: Sequence[Sequence[int]], values: Sequence[Sequence[float]]) -> list[Top]:
    return [list(zip(*row, strict=True)) for row in zip(tokens, values, strict=True)]
