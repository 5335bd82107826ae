"""What is developed without a model imports without one."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "accelerate", "peft", "numpy")


@pytest.mark.parametrize(
    "modules",
    ["resd.context", "resd.tasks", "resd.tasks.base, resd.tasks.registry, resd.tasks.lab"],
)
def test_context_and_tasks_import_without_torch(modules):
    code = f"import sys, {modules}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
