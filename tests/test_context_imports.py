"""What is developed or asked without a model imports without one."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "accelerate", "peft", "numpy", "matplotlib", "tokenizers")
# What `resd --help` does not wait for either: reading settings and templates.
SLOW = ("pydantic", "jinja2", "rich")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import resd", HEAVY + SLOW),
        ("import resd.context", HEAVY),
        ("import resd.tasks", HEAVY),
        ("import resd.tasks.base, resd.tasks.registry, resd.tasks.lab", HEAVY),
        ("from resd.cli import main; main(['--help'])", HEAVY + SLOW),
        ("from resd.cli import main; main(['tasks', 'check', '--help'])", HEAVY + SLOW),
        ("from resd.cli import main; main(['train', '--help'])", HEAVY),
    ],
)
def test_what_needs_no_model_imports_without_torch(statement, absent):
    code = (
        "import atexit, sys\n"
        f"report = lambda: print([m for m in {absent} if m in sys.modules], file=sys.stderr)\n"
        f"atexit.register(report)\n{statement}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
