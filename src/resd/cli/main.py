"""The command line: resd train, eval, compare, report and the others that --help lists."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from resd import __version__
from resd.cli import (
    completion,
    doctor,
    evaluate,
    evidence,
    lab,
    probe,
    push,
    report,
    retention,
    tasks,
)
from resd.errors import ProcessError, TemplateError, UserError, close_to, one_line, terminal_safe
from resd.launch import process_number

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_PATH_ERRORS = (
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EEXIST,
    errno.ELOOP,
)
_EPILOG = "Every command has its own --help; of one setting: resd --help KEY, as in train.lr."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # Files are passed to the tokenizer from several threads at times; its own pool only gets in
    # the way, and warns when the process forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows another; it ends nothing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_words(arguments)
        return _dispatch(arguments)
    except (UserError, TemplateError) as error:
        return _refuse(str(error), error)
    except KeyboardInterrupt as error:
        print(f"resd: stopped{one_line(str(error))}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return _refuse("nobody reads the output any more; go on with resd train --resume RUN")
    except OSError as error:
        if error.errno in _OUTPUT_ERRORS:
            return _refuse(f"cannot write {error.filename or 'the output'}: {error.strerror}")
        if error.errno not in _PATH_ERRORS or error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}")


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse words that can be no path and no setting.

    Raises:
        UserError: one holds a null byte, or is not UTF-8.
    """
    for word in arguments:
        if "\0" in word:
            raise UserError(f"{word[:80]!r} holds a null byte")
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{word[:80]!r} is not UTF-8 text") from None


def _refuse(text: str, error: Exception | None = None) -> int:
    """One line, whatever the error holds; of several processes one says it."""
    rank = process_number()
    if rank == 0:
        print(f"resd: {one_line(text)}", file=sys.stderr)
    elif not isinstance(error, ProcessError) and _processes_are_up():
        # What they meet before they know each other, they meet alike: process 0 says it.
        print(f"resd: process {rank}: {one_line(text)}", file=sys.stderr)
    return error.exit_code if isinstance(error, UserError) else 2


def _processes_are_up() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.distributed.is_initialized())


def _dispatch(arguments: list[str]) -> int:
    parser = _parser()
    if arguments[:2] == ["completion", "--for"]:
        print("\n".join(completion.candidates(parser, arguments[2:])))
        return 0
    if arguments[:1] in (["--help"], ["-h"]) and len(arguments) == 2:
        return _help(arguments[1])
    if arguments[:1] == ["train"]:
        return _train(arguments[1:])
    if not arguments:
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(arguments)
    if rest and arguments[:2] != ["tasks", "check"] and arguments[:1] not in (["probe"], ["eval"]):
        raise UserError(f"unrecognized arguments: {' '.join(rest)}"[:300])
    options.overrides = _overrides(rest)
    return int(options.run(options))


class _Parser(argparse.ArgumentParser):
    """Its mistakes are one line, and name what may be meant."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:400]}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            what = action.option_strings[0] if action.option_strings else "command"
            raise UserError(
                f"unknown {what} {str(value)[:80]!r}{close_to(value, known)}; it is one of "
                f"{', '.join(known)}"
            )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="resd", description="Post-train a language model from its failures.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"resd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("train", help="train a model; with no argument, the lab's", add_help=False)
    evaluate.add_arguments(commands.add_parser("eval", help="evaluate a run's model, or any model"))
    _compare_arguments(commands.add_parser("compare", help="several methods and seeds, one table"))
    evidence.add_arguments(
        commands.add_parser("evidence", help="the registered experiments: which claims hold")
    )
    _playbook_arguments(commands.add_parser("playbook", help="look at a run's playbook"))
    listed = commands.add_parser(
        "tasks", help="list tasks and presets, check a task, start your own"
    )
    tasks.add_arguments(listed)
    probe.add_arguments(
        commands.add_parser("probe", help="can the method work for this task and model? in minutes")
    )
    retention.add_arguments(
        commands.add_parser("retention", help="what a model can do that no task taught it")
    )
    report.add_commands(commands)
    push.add_arguments(
        commands.add_parser("push", help="a run's model and its card, to the Hugging Face Hub")
    )
    lab.add_arguments(commands.add_parser("lab", help="the lab's base model"))
    doctor.add_arguments(
        commands.add_parser("doctor", help="what this machine has, or the memory a run needs")
    )
    completion.add_arguments(
        commands.add_parser("completion", help="Tab in bash, zsh and fish: commands, settings, ...")
    )
    return parser


# -- resd train ----------------------------------------------------------------------------------


def _train(arguments: list[str]) -> int:
    asked = next((i for i, word in enumerate(arguments) if word in ("-h", "--help")), None)
    if asked is not None:
        before = _split(arguments[:asked]).overrides
        named = [str(value) for key, value in before if key in ("method", "method.name")]
        return _help(*(arguments[asked + 1 : asked + 2] or named[-1:]))
    words = _split(arguments)
    if words.resume is not None:
        if words.dry_run:
            raise UserError("--dry-run is of a new run; it does not go with --resume")
        return _resume(words)
    if words.accept:
        raise UserError("--accept goes with --resume RUN")
    if not words.dry_run:
        _say_first("reading settings")
    from resd.config import load_config

    config = load_config(words.file, words.overrides)
    if words.dry_run:
        return doctor.dry_run(config)
    from resd.api import start_run

    start_run(config)
    return 0


def _say_first(what: str) -> None:
    """A line before anything large is imported: that takes seconds in which nothing shows."""
    if process_number() == 0:
        text = f"resd {__version__}: {what}, then loading libraries, task and model"
        try:
            print(terminal_safe(text, sys.stdout), flush=True)
        except OSError:  # nobody reads it; the run goes on, as with the view
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _help(key: str = "") -> int:
    """Every setting, or what is said of one, of a group or of a method."""
    if key and not key.startswith("-"):
        from resd.cli.setting import help_of

        print(help_of(key))
        return 0
    from resd.cli.settings import print_settings

    print_settings()
    return 0


def _resume(words: _Words) -> int:
    assert words.resume is not None
    if words.file is not None:
        raise UserError("--resume goes on with a run as it was; it takes no config file")
    _say_first(f"going on with {words.resume}")
    from resd.api import more_steps, resume_run

    steps = more_steps(words.overrides, words.resume)
    resume_run(words.resume, accept=words.accept, steps=steps)
    return 0


@dataclass
class _Words:
    """Words of `resd train`: config file, run to resume, what may have changed, settings."""

    file: Path | None = None
    resume: Path | None = None
    accept: list[str] = field(default_factory=list)
    dry_run: bool = False
    overrides: list[tuple[str, Any]] = field(default_factory=list)


def _split(arguments: Sequence[str]) -> _Words:
    """Sort the words of the command line.

    Raises:
        UserError: a key has no value, or there are two files.
    """
    words, rest = _Words(), list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if words.file is not None:
                raise UserError(f"two config files: {words.file} and {word}")
            words.file = Path(word)
            continue
        if word == "--dry-run":
            words.dry_run = True
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise UserError(f"--{key} needs a value")
            value = rest.pop(0)
        if key == "resume":
            words.resume = Path(value)
        elif key == "accept":
            words.accept.append(value)
        elif key == "stream" and value and not value.startswith("["):
            from resd.config import read_stream

            words.overrides.append(("stream", read_stream(Path(value))))
        else:
            words.overrides.append((key.replace("-", "_"), parse_value(value)))
    return words


def _overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Dotted settings only."""
    words = _split(arguments)
    if words.file is not None or words.resume is not None or words.accept or words.dry_run:
        raise UserError(f"unexpected {words.file or '--resume, --accept or --dry-run'}")
    return words.overrides


def parse_value(text: str) -> Any:
    """A value from the command line: JSON where it is JSON, `none`, else the text itself."""
    if text.lower() in ("none", "null"):
        return None
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# -- the other commands --------------------------------------------------------------------------


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, help="TOML that all runs share")
    parser.add_argument("--methods", default="resd,sdpo,sdpo_ss,grpo", help="comma-separated")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated; 0-4 also works")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'LABEL: KEY=VALUE ...'",
        help="one more curve: settings beside the shared ones; may be repeated",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("compare"), help="directory")
    parser.add_argument("--report", action="store_true", help="write a page of it, and of each run")
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from resd.compare.command import compare, parse_seeds, parse_variants

    shared = [_assignment(text) for text in options.set]
    variants = parse_variants(options.methods, options.variant, _assignment)
    seeds = parse_seeds(options.seeds)
    code = compare(options.config, variants, seeds, shared, options.jobs, options.output)
    if options.report and (options.output / "results.json").is_file():
        report.write(options.output, options.output / "report.html")
    return code


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"expected KEY=VALUE, found {text!r}")
    return key.removeprefix("--"), parse_value(value)


def _playbook_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print a run's playbook")
    show.add_argument("run_directory", type=Path, help="the run")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_playbook_show)


def _playbook_show(options: argparse.Namespace) -> int:
    from resd.runs.config_file import read_config

    read_config(options.run_directory)
    file = options.run_directory / ("playbook.json" if options.json else "playbook.md")
    if not file.is_file():
        raise UserError(f"{options.run_directory} has no playbook (yet): only resd keeps one")
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    # Escaped in JSON already; a playbook's Markdown holds what a model wrote.
    print(text if options.json else terminal_safe(text, sys.stdout), end="")
    return 0
