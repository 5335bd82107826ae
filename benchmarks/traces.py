"""What traces cost: their share of a step's processor time, by part, and the bytes they take.

python benchmarks/traces.py [--steps 12] [--vocabulary 151936] [KEY=VALUE ...]

One case is the lab as it is, whose steps are the shortest that there are; the other a model of the
same size with the vocabulary of a real one, untrained, whose responses go on to the limit.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from resd.cli.main import _assignment
from resd.config import load_config
from resd.context import teacher_prompt
from resd.loop import recorder
from resd.loop.recorder import Recorder
from resd.loop.setup import prepare
from resd.loop.token_numbers import Watch
from resd.loop.trainer import Trainer
from resd.loop.view import MuteView
from resd.methods.resd import Resd
from resd.runs import RunDirectory

PARTS = {
    "tokens": [(Watch, "chunk"), (Watch, "taken"), (Recorder, "_numbers")],
    "records": [(Recorder, "trace"), (Recorder, "written"), (recorder, "as_record")],
    "playbook": [(Resd, "_trace_playbook")],
    "sections": [(teacher_prompt, "section_spans")],
    "writing": [(Recorder, "_write")],
}


class Meter:
    """Processor seconds of functions; of one inside another only the outer one counts."""

    def __init__(self):
        self.seconds, self._inside = Counter(), False
        for part, places in PARTS.items():
            for owner, name in places:
                setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part, function):
        @functools.wraps(function)
        def call(*arguments, **named):
            if self._inside:
                return function(*arguments, **named)
            self._inside, began = True, time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self._inside = False
                self.seconds[part] += time.process_time() - began

        return call


def large_vocabulary(place, size):
    """The lab's base model and tokenizer with room for more tokens, as it was initialised."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from resd.models.load import LAB_MODEL

    model = AutoModelForCausalLM.from_pretrained(LAB_MODEL)
    config = model.config
    config.vocab_size = size
    type(model)(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(LAB_MODEL).save_pretrained(place)
    return place


def measure(name, settings, steps, meter):
    """Print the shares of a case."""
    with tempfile.TemporaryDirectory() as place:
        config = load_config(None, [("output", f"{place}/run"), *settings])
        run = RunDirectory.create(Path(place) / "run", config)
        with closing(prepare(config)) as setup:
            trainer = Trainer(setup, run, MuteView())
            shares, parts = [], Counter()
            for step in range(1, steps + 1):
                trainer.progress.step = step
                meter.seconds.clear()
                began = time.process_time()
                trainer._one_step(trainer.course.batch(step))
                took = time.process_time() - began
                if step > 1:  # the first one warms up
                    shares.append(sum(meter.seconds.values()) / took)
                    parts.update({part: value / took for part, value in meter.seconds.items()})
        sizes = [file.stat().st_size for file in (Path(place) / "run" / "traces").iterdir()]
        run.close()
    each = ", ".join(f"{part} {value / len(shares):.2%}" for part, value in parts.most_common())
    print(
        f"{name}: median {statistics.median(shares):.2%} of a step (most {max(shares):.2%}); "
        f"{each}; {statistics.mean(sizes) / 1000:.1f} kB a step; {took:.2f} s the last step"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    more = [_assignment(text) for text in options.settings]
    meter = Meter()
    measure("lab", more, options.steps, meter)
    with tempfile.TemporaryDirectory() as place:
        large = [("model.path", str(large_vocabulary(place, options.vocabulary)))]
        fewer = max(2, options.steps // 3)
        measure(f"vocabulary of {options.vocabulary}", large + more, fewer, meter)


if __name__ == "__main__":
    main()
