"""The sandbox believes nothing, needs no tidy library, and leaves no program behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sandbox_attacks import call

from resd.sandbox import SandboxUnavailable
from resd.sandbox import process as process_module

FORGED = {
    "an older word for it": '{"failure": "unsupported", "message": "", "line": null, "call": null}',
    "a missing protection": '{"missing": "Landlock; set task_args.sandbox to none"}',
    "unlocked": '!{"missing": "Landlock"}',
    "a late answer": '{"failure": "timeout", "message": "busy", "line": null, "call": null}',
}


@pytest.mark.parametrize("name", FORGED)
def test_a_candidate_cannot_say_that_the_sandbox_failed(name: str) -> None:
    data = FORGED[name].encode()
    forge = f"import os\nfor d in range(3, 1024):\n    try: os.write(d, {data!r})\n"
    result = call(f"{forge}    except OSError: pass\nos._exit(0)")
    assert (result.values, result.failure) == (None, "protocol")
    assert "none" not in result.message
    said = call("def f(x): raise RuntimeError('this machine lacks Landlock')")
    assert (said.failure, said.message) == (
        "exception",
        "RuntimeError: this machine lacks Landlock",
    )


def test_a_process_that_cannot_be_locked_is_no_fault_of_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner = tmp_path / "runner.py"
    for source, words in (
        ('import os, sys; os.write(int(sys.argv[1]), b\'{"missing": "Landlock"}\')', "^Landlock$"),
        ("raise SystemError('no such thing')", "exit code 1, .*SystemError: no such thing"),
    ):
        runner.write_text(source)
        monkeypatch.setattr(process_module, "_RUNNER", runner)
        with pytest.raises(SandboxUnavailable, match=words):
            call("def f(x): return 1")


ODD_LIBRARY = """
import os, sys
sys.path[:] = [*sys.path, {place!r}, {place!r} + "/nothing"]
sys.argv[0] = {runner!r}
exec(compile(open({runner!r}).read(), {runner!r}, "exec"))
"""


def test_an_odd_standard_library_does_not_disable_the_sandbox_nor_open_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "lib"
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "answers.py").write_text("answer = 1")
    place.mkdir()
    (place / "honest.py").write_text("word = 'honest'")
    (place / "dangling.py").symlink_to(place / "nowhere")
    (place / "round.py").symlink_to(place / "round.py")
    (place / "up").symlink_to("/")
    (place / "packages").symlink_to(tmp_path / "site-packages")
    os.mkfifo(place / "pipe")
    runner = tmp_path / "runner.py"
    real = str(process_module._RUNNER)
    runner.write_text(ODD_LIBRARY.format(place=str(place), runner=real))
    monkeypatch.setattr(process_module, "_RUNNER", runner)
    assert call("import honest\ndef f(x): return honest.word").values == ("honest",)
    for file in ("up/etc/passwd", "packages/answers.py"):
        result = call(f"def f(x): return open('{place}/{file}').read()")
        assert result.failure == "exception" and "PermissionError" in result.message


TRAINER = """
from resd.sandbox import Limits, make_sandbox
make_sandbox({kind!r}).call({source!r}, "f", [[1]], Limits(seconds=60, cpu_seconds=30))
"""


@pytest.mark.parametrize("kind", ["strict", "none"])
@pytest.mark.parametrize("what", ["time.sleep(100)", "[0 for _ in iter(int, 1)]"])
def test_a_program_dies_with_its_trainer(kind: str, what: str) -> None:
    source = f"import sys, time\nsys.stdout.flush()\ndef f(x): {what}"
    program = TRAINER.format(kind=kind, source=source)
    trainer = subprocess.Popen([sys.executable, "-c", program])
    children = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children")
    until = time.monotonic() + 20
    running: list[str] = []
    while not running and time.monotonic() < until:  # past the probe of `strict`, into the program
        time.sleep(0.7)
        running = children.read_text().split()
    trainer.kill()
    trainer.wait()
    assert running
    while time.monotonic() < until:
        states = [Path(f"/proc/{pid}/stat") for pid in running]
        if not any(
            s.exists() and s.read_text().rpartition(")")[2].split()[0] != "Z" for s in states
        ):
            return
        time.sleep(0.02)
    raise AssertionError("the program lives on")
