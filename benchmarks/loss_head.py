"""The loss head: memory above the hidden states, and time, against the full computation.

python benchmarks/loss_head.py [--quick]

Every case runs in a process of its own (peak resident memory); times are interleaved medians. The
loss is RESD's: Jensen-Shannon, top 100 of both, a tail bucket, clipped; hidden size 256, float32.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import threading
import time

import torch

from resd.distill import divergence_per_token
from resd.distill.chunked import chunked_loss

VOCABULARY, WIDTH = 151_936, 256
GIB = 1 << 30


class Linear(torch.nn.Linear):
    """A head without a bias."""

    @property
    def weights(self):
        return [self.weight]


def data(tokens):
    torch.manual_seed(0)
    heads = [Linear(WIDTH, VOCABULARY, bias=False) for _ in range(2)]
    hidden = [torch.randn(tokens, WIDTH) for _ in range(2)]
    heads[1].requires_grad_(False)
    return heads[0], heads[1], hidden[0].requires_grad_(), hidden[1]


def per_token(student, teacher):
    settings = {"alpha": 0.5, "top_k": 100, "support": "both", "ratio_min": 0.2}
    return divergence_per_token(student, teacher, **settings)


def chunked(size, student, teacher, ours, theirs):
    def per_chunk(logits, span):
        return per_token(logits, teacher(theirs[span])).sum()

    chunked_loss(ours, student, per_chunk, size).backward()


def whole(student, teacher, ours, theirs):
    per_token(student(ours), teacher(theirs)).sum().backward()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def one_memory(tokens, size):
    """Peak above what is there before, in GiB; the head's own gradient is among it."""
    given = data(tokens)
    before, peak, done = resident(), [0], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    whole(*given) if size == 0 else chunked(size, *given)
    done.set()
    watcher.join()
    return (peak[0] - before) / GIB


def measure_memory(cases):
    copies = {}
    for tokens, size in cases:
        words = [sys.executable, __file__, "--memory", str(tokens), str(size)]
        copies[tokens, size] = float(subprocess.run(words, capture_output=True, check=True).stdout)
        copy = tokens * VOCABULARY * 4 / GIB
        share = copies[tokens, size] / copy
        name = f"chunks of {size}" if size else "whole"
        peak = copies[tokens, size]
        print(
            f"T = {tokens:6}  {name:15} {peak:6.2f} GiB  {share:5.2f} of one copy ({copy:.1f} GiB)"
        )


def measure_time(tokens, sizes, repeats):
    given = data(tokens)
    times = {name: [] for name in ("whole", *sizes)}
    for _ in range(repeats):
        for name in times:
            began = time.perf_counter()
            whole(*given) if name == "whole" else chunked(name, *given)
            times[name].append(time.perf_counter() - began)
    first = statistics.median(times["whole"])
    for name, values in times.items():
        median = statistics.median(values)
        shown = name if name == "whole" else f"chunks of {name}"
        print(f"T = {tokens:6}  {shown:15} {median:6.2f} s  {median / first:.2f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer and shorter cases")
    parser.add_argument("--memory", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(one_memory(*options.memory))
        sys.exit()
    lengths = (2048, 4096) if options.quick else (2048, 8192, 20480)
    sizes = (512,) if options.quick else (256, 512, 1024)
    measure_memory([(tokens, size) for tokens in lengths for size in sizes] + [(2048, 0)])
    measure_time(2048, sizes, 1 if options.quick else 3)
