"""Command lines one after the other in each of several processes, as torchrun starts them.

    torchrun --nproc-per-node 2 processes.py PLANS.json

PLANS.json holds a list of command lines for `resd`; each process writes its exit codes into
PLANS.json.RANK. Starting Python once for all of them saves most of the time.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import fake_vllm
import pytest
import torch

from resd.cli import main


def run(file: Path) -> None:
    torch.set_num_threads(1)
    if "FAKE_VLLM" in os.environ:
        place = Path(os.environ["FAKE_VLLM"]) / os.environ["RANK"]
        fake_vllm.install(pytest.MonkeyPatch(), place)
    codes = []
    for words in json.loads(file.read_text()):
        codes.append(main(words))
        Path(f"{file}.{os.environ['RANK']}").write_text(json.dumps(codes))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
