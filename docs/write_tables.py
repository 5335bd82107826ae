"""Write what is computed into the tree.

The tables of scaling.md, the first lines of presets, settings.md, what evidence.md says is
registered, and, from the output of `resd evidence`, its results.

python docs/write_tables.py [EVIDENCE_DIRECTORY]

Each table of scaling.md belongs to the command in the block of code before it.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from resd.cli.doctor import markdown
from resd.cli.main import _split
from resd.cli.settings import settings
from resd.config import RunConfig, load_config, preset_names
from resd.evidence.registered import registered
from resd.evidence.registry import load_experiments
from resd.models.memory import Memory, first_line

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/scaling.md"
EVIDENCE = ROOT / "docs/evidence.md"
SETTINGS = ROOT / "docs/settings.md"
PRESETS = ROOT / "src/resd/presets"
_TABLE = re.compile(r"(```\n([^`]*)\n```\n+<!-- table -->\n).*?(<!-- end -->)", re.DOTALL)


def table(command):
    """The memory table of a training command, `resd train ...` or `torchrun ... train ...`."""
    launcher, _, words = command.partition("train ")
    found = re.findall(r"--(?:nproc-per-node|nnodes) (\d+)", launcher)
    processes = 1
    for number in found:
        processes *= int(number)
    split = _split(words.split())
    return markdown(Memory(load_config(split.file, split.overrides)), processes)


def page(text):
    """The page with its tables as they are computed now."""
    return _TABLE.sub(lambda m: f"{m[1]}{table(m[2].splitlines()[-1])}\n{m[3]}", text)


def preset(name):
    """A preset's text with its first line as it is computed now."""
    text = (PRESETS / f"{name}.toml").read_text(encoding="utf-8")
    _, _, rest = text.partition("\n")
    return f"{first_line(load_config(None, [('preset', name), ('method.name', 'resd')]))}\n{rest}"


def settings_page():
    """Every setting, its default and meaning, a table a group."""
    groups = {}
    for key, default, meaning in settings(RunConfig):
        group = key.partition(".")[0] if "." in key else "A run"
        groups.setdefault(group, []).append((key, default, meaning))
    lines = [
        "# Settings",
        "",
        "Of `resd train` and the files it reads; `resd train --help` prints the same. A later one "
        "wins: preset, file, command line. In brackets the methods that have a setting, and what "
        "it may be. Written by `python docs/write_tables.py`.",
    ]
    for group in sorted(groups, key=lambda name: name != "A run"):
        lines += ["", f"## {group}", "", "| setting | default | |", "|---|---|---|"]
        for row in groups[group]:
            key, default, meaning = (cell.replace("|", "\\|") for cell in row)
            lines.append(f"| `{key}` | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def between(text, name, content):
    """The text with what stands between <!-- NAME --> and <!-- end NAME --> replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{content}{m[2]}", text)


def results(text, folder):
    """The evidence page with the results of a directory, whose pictures are copied beside it."""
    found = (folder / "evidence.md").read_text(encoding="utf-8").partition("# Evidence\n")[2]
    for picture in sorted((folder / "figures").glob("*.png")):
        shutil.copyfile(picture, EVIDENCE.parent / f"evidence-{picture.name}")
    found = found.replace("](figures/", "](evidence-").replace("\n## ", "\n### ")
    return between(text, "results", f"{found.strip()}\n")


if __name__ == "__main__":
    for name in preset_names():
        (PRESETS / f"{name}.toml").write_text(preset(name), encoding="utf-8")
    SETTINGS.write_text(settings_page(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    text = EVIDENCE.read_text(encoding="utf-8")
    text = between(text, "registered", registered(load_experiments()))
    for folder in sys.argv[1:]:
        text = results(text, Path(folder))
    EVIDENCE.write_text(text, encoding="utf-8")
