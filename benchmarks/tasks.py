"""Speed of the graders and strength of the trivial strategies: what docs/tasks.md quotes.

python benchmarks/tasks.py

Times are medians; machines are shared and noisy: compare ratios of one invocation.
"""

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from resd.config import EvalConfig
from resd.loop.evaluate import evaluate_baselines
from resd.sandbox import make_sandbox
from resd.tasks.bouncing import BouncingEnvironment, simulate
from resd.tasks.bouncing.scenes import TIMES, make_scene
from resd.tasks.manufactoria import ManufactoriaEnvironment, parse, run

LOOP = "START start:\n    NEXT a\nPULLER_RB a:\n    [R] a\n    [EMPTY] a\nEND end"
SOURCE = "def f(x):\n    return x"


def seconds(function, *arguments):
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def median_ms(function, items):
    return 1000 * statistics.median(seconds(function, item) for item in items)


def machine_steps():
    factory = parse(LOOP)
    rates = [1000 / seconds(run, factory, "R" * 500) for _ in range(200)]
    print(f"manufactoria: {statistics.median(rates):,.0f} node visits a second on one core")


def graders():
    world = ManufactoriaEnvironment()
    pairs = [(example, world.gold(example)) for example in world.examples("test")]
    ms = median_ms(lambda pair: world.evaluate(*pair), pairs)
    print(f"manufactoria: {ms:.2f} ms an evaluation of a right program")
    for level in ("easy", "medium"):
        names = [f"benchmark-{i}" for i in range(40)]
        making = median_ms(lambda name, level=level: make_scene(level, name), names)
        scenes = [make_scene(level, name) for name in names]
        ms = median_ms(lambda scene: simulate(scene, TIMES), scenes)
        print(f"bouncing, {level}: {ms:.2f} ms to simulate a scene, {making:.0f} ms to make one")


def baselines():
    worlds = {"manufactoria, exact": ManufactoriaEnvironment()}
    worlds |= {f"bouncing, {level}": BouncingEnvironment(level) for level in ("easy", "medium")}
    for name, world in worlds.items():
        found = evaluate_baselines(world, world.examples("test"), EvalConfig(), os.cpu_count() or 1)
        for strategy, score in found.items():
            print(f"{name}: {strategy} solves {score.mean:.3f}, cases {score.case_mean:.3f}")


def sandbox():
    strict = make_sandbox("strict")
    plain, boxed = [], []
    for _ in range(40):  # interleaved
        plain.append(seconds(subprocess.run, [sys.executable, "-S", "-c", "pass"]))
        boxed.append(seconds(strict.call, SOURCE, "f", [[1]]))
    over = 1000 * (statistics.median(boxed) - statistics.median(plain))
    print(
        f"sandbox: {1000 * statistics.median(boxed):.1f} ms a call, {over:.1f} ms over a plain "
        f"python -S start ({statistics.median(boxed) / statistics.median(plain):.1f} times)"
    )
    for workers in (1, os.cpu_count() or 1):
        with ThreadPoolExecutor(workers) as pool:
            calls = pool.map(lambda _: strict.call(SOURCE, "f", [[1]]), range(60))
            spent = seconds(list, calls)
        print(f"sandbox: {60 / spent:.0f} calls a second by {workers} threads")


if __name__ == "__main__":
    machine_steps()
    sandbox()
    graders()
    baselines()
