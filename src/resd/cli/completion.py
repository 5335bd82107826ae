"""`resd completion SHELL`: what a shell asks at every Tab is answered by resd itself.

So the answers are those of the installed version, with its presets, tasks and settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

SCRIPTS = {
    "bash": """\
_resd() {
    local IFS=$'\\n'
    COMPREPLY=($(resd completion --for "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F _resd resd
""",
    "zsh": """\
#compdef resd
_resd() {
    local -a found
    found=("${(@f)$(resd completion --for "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -- "${found[@]}"; else _files; fi
}
compdef _resd resd
""",
    "fish": """\
function __resd
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l found (resd completion --for $before[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c resd -f -a '(__resd)'
""",
}
_HOW = """\
bash: echo 'eval "$(resd completion bash)"' >> ~/.bashrc
zsh:  echo 'eval "$(resd completion zsh)"' >> ~/.zshrc    (after compinit)
fish: resd completion fish > ~/.config/fish/completions/resd.fish"""
# Words of `resd train` that are no settings.
_OF_TRAIN = ("--help", "--dry-run", "--resume", "--accept")
# Commands that take settings beside their own options.
_WITH_SETTINGS = (["train"], ["eval"], ["probe"], ["tasks", "check"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd completion`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"Prints what makes Tab complete commands and settings.\n\n{_HOW}"
    parser.add_argument("shell", choices=SCRIPTS, help="whose script is printed")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script of a shell."""
    print(SCRIPTS[options.shell], end="")
    return 0


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What the last of the words behind `resd` can become; nothing where a file is meant.

    Args:
        parser: of the command line.
        words: all up to the cursor; the last one may be empty.
    """
    *before, current = list(words) or [""]
    last = before[-1] if before else ""
    path: list[str] = []
    for word in before:
        below = _commands(parser)
        if word not in below:
            break
        parser, path = below[word], [*path, word]
    below = _commands(parser)
    has_settings = path in _WITH_SETTINGS
    if path in ([], ["train"]) and last in ("--help", "-h"):
        found = _helped()
    elif last.startswith("--"):
        found = _values_of(parser, last, has_settings)
    elif current.startswith("-"):
        found = [option for action in parser._actions for option in action.option_strings]
        found += [*_settings(), *_OF_TRAIN * (path == ["train"])] if has_settings else []
    else:
        positional = [a.metavar for a in parser._actions if not a.option_strings]
        found = list(below) or (_named("task") if "TASK" in positional else [])
    return sorted({word for word in found if word.startswith(current)})


def _commands(parser: argparse.ArgumentParser) -> dict[str, Any]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def _values_of(parser: argparse.ArgumentParser, option: str, has_settings: bool) -> list[str]:
    """What can stand behind an option, or a setting."""
    name = option.removeprefix("--")
    own = next((a for a in parser._actions if option in a.option_strings), None)
    if own is not None and own.choices:
        return [str(choice) for choice in own.choices]
    if name in ("preset", "task", "model", "methods"):
        return _named(name)
    if not has_settings or own is not None:
        return []
    if name in ("model.path", "engine.kind"):
        return _named(name)
    from resd.cli.setting import walk

    settings = [setting for setting in walk() if setting.key == name.replace("-", "_")]
    return [value for setting in settings for value in setting.values]


def _named(what: str) -> list[str]:
    """Names that are no type's."""
    from resd.config import METHODS, preset_names
    from resd.config.run import ENGINES
    from resd.tasks.registry import ADAPTERS, BUILT_IN

    if what == "preset":
        return preset_names()
    if what == "task":
        return [*BUILT_IN, *(f"{adapter}:" for adapter in ADAPTERS)]
    if what in ("model", "model.path"):
        return ["lab", "smol"]
    return list(METHODS if what == "methods" else ENGINES)


def _helped() -> list[str]:
    """What `--help` can be asked about."""
    from resd.cli.setting import walk
    from resd.config import METHODS

    return [*METHODS, *(setting.key for setting in walk())]


def _settings() -> list[str]:
    from resd.cli.setting import walk

    found = [s for s in walk() if s.group is None or "none" in s.values]
    return [f"--{setting.key}" for setting in found]
