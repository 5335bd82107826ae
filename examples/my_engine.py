"""An engine of one's own: transformers, and a log of every batch with its speed.

    resd train --engine.kind examples/my_engine.py:ENGINE --engine.args.log speed.jsonl

A real one would hold weights of its own, copy them in `sync`, and say `shares_weights = False`.
"""

import json
import time
from pathlib import Path

from resd.engines import HFEngine
from resd.engines.base import EngineKind
from resd.errors import UserError


class LoggedEngine:
    shares_weights = True  # it samples from the very module that is trained

    def __init__(self, inner, log):
        self.inner, self.log = inner, log

    def generate(self, requests, on_done=None):
        began = time.monotonic()
        completions = self.inner.generate(requests, on_done)
        tokens = sum(len(completion.token_ids) for completion in completions)
        row = {"requests": len(requests), "tokens": tokens, "seconds": time.monotonic() - began}
        with self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return completions

    def sync(self, model, version):
        self.inner.sync(model, version)

    def rest(self):
        return self.inner.rest()

    def close(self):
        self.inner.close()


def check(config, context):
    args = config.engine.args or {}
    if set(args) != {"log"}:
        raise UserError(f"engine.args: this engine wants log, a file; found {sorted(args)}")


def make(config, model, tokenizer, context, backend):
    inner = HFEngine(model, tokenizer, config.rollout.batch_size, context)
    return LoggedEngine(inner, Path(config.engine.args["log"]))


ENGINE = EngineKind(options=("args",), check=check, make=make)
