"""The command line: resd train | eval | compare | playbook | tasks | lab."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import typing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Console

from resd import __version__, task_commands
from resd.config import METHODS, RunConfig, load_config
from resd.context import TemplateError
from resd.errors import UserError

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_EPILOG = "Every command has its own --help."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # Files are passed to the tokenizer from several threads at times; its own pool only gets in
    # the way, and warns when the process forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except (UserError, TemplateError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("resd: stopped; go on with resd train --resume RUN", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return _refuse("nobody reads the output any more; go on with resd train --resume RUN")
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        place = error.filename or "the output"
        return _refuse(f"cannot write {place}: {error.strerror}")


def _refuse(text: str) -> int:
    """One line, whatever the error holds."""
    print(f"resd: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> int:
    parser = _parser()
    if arguments[:1] == ["train"]:
        return _train(arguments[1:])
    if not arguments:
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(arguments)
    if rest and arguments[:2] != ["tasks", "check"]:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = _overrides(rest)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resd", description="Post-train a language model from its failures.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"resd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("train", help="train a model; with no argument, the lab's", add_help=False)
    _eval_arguments(commands.add_parser("eval", help="evaluate a run's model, or any model"))
    _compare_arguments(commands.add_parser("compare", help="several methods and seeds, one table"))
    _playbook_arguments(commands.add_parser("playbook", help="look at a run's playbook"))
    tasks = commands.add_parser(
        "tasks", help="list tasks and presets, check a task, start your own"
    )
    task_commands.add_arguments(tasks)
    _lab_arguments(commands.add_parser("lab", help="the lab's base model"))
    return parser


# -- resd train ----------------------------------------------------------------------------------


def _train(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        _print_settings()
        return 0
    file, resume, overrides = _split(arguments)
    if resume is not None:
        if file is not None or overrides:
            raise UserError("--resume goes on with a run as it was; it takes no other setting")
        return _resume(resume)
    config = load_config(file, overrides)
    from resd.api import train

    train(config)
    return 0


def _resume(path: Path) -> int:
    from resd.api import resume

    resume(path)
    return 0


def _split(arguments: Sequence[str]) -> tuple[Path | None, Path | None, list[tuple[str, Any]]]:
    """Config file, run to resume, and dotted overrides."""
    file: Path | None = None
    resume: Path | None = None
    overrides: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if file is not None:
                raise UserError(f"two config files: {file} and {word}")
            file = Path(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise UserError(f"--{key} needs a value")
            value = rest.pop(0)
        if key == "resume":
            resume = Path(value)
        else:
            overrides.append((key.replace("-", "_"), parse_value(value)))
    return file, resume, overrides


def _overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    """Dotted settings only."""
    file, resume, overrides = _split(words)
    if file is not None or resume is not None:
        raise UserError(f"unexpected {file or '--resume'}")
    return overrides


def parse_value(text: str) -> Any:
    """A value from the command line: JSON where it is JSON, `none`, else the text itself."""
    if text.lower() in ("none", "null"):
        return None
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except ValueError:
        return text


def _print_settings() -> None:
    """Every setting with its default and meaning."""
    console = Console()
    console.print("usage: resd train [CONFIG.toml] [--key.sub value ...]\n", markup=False)
    console.print("       resd train --resume RUN\n", markup=False)
    console.print(
        "With no argument it trains the lab's default, preset 'lab'. Settings stand in a preset, "
        "in a TOML file, or on the command line; a later one wins. 'none' stands for no value. "
        "Defaults are the paper's.\n",
        markup=False,
    )
    for key, default, meaning in settings(RunConfig):
        console.print(f"  --{key}", style="bold", markup=False, end="")
        console.print(f"  {default}", style="cyan", markup=False, highlight=False)
        console.print(f"      {meaning}", markup=False, highlight=False)


def settings(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """Key, default and meaning of every setting, methods with their own keys."""
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key == "method":
            rows.append(("method.name", "resd", f"the method: {', '.join(METHODS)}"))
            for method, config in METHODS.items():
                own = settings(config, "method.")
                rows += [(k, d, f"({method}) {m}") for k, d, m in own if k != "method.name"]
            continue
        part = _sub_model(field.annotation)
        if part is not None:
            if part is not field.annotation:
                rows.append((key, "none", f"{field.description}; set any of its keys:"))
            rows += settings(part, f"{key}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else _shown(default)
        rows.append((key, shown, f"{field.description or ''}{_choices(field.annotation)}"))
    return _merged(rows)


def _merged(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Settings that several methods share with one default stand once."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for key, default, meaning in rows:
        method, text = "", meaning
        if meaning.startswith("(") and ") " in meaning and key.startswith("method."):
            method, _, text = meaning[1:].partition(") ")
        merged.setdefault((key, default, text), []).append(method)
    return [
        (key, default, f"({', '.join(methods)}) {text}" if methods[0] else text)
        for (key, default, text), methods in merged.items()
    ]


def _sub_model(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *typing.get_args(annotation)]
    return next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _choices(annotation: Any) -> str:
    options = [annotation, *typing.get_args(annotation)]
    literal = next((a for a in options if typing.get_origin(a) is Literal), None)
    return f" [{' | '.join(map(str, typing.get_args(literal)))}]" if literal else ""


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return json.dumps(default) if isinstance(default, list | dict | tuple) else str(default) or '""'


# -- the other commands --------------------------------------------------------------------------


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run directory, a model directory, 'lab', or a hub id")
    parser.add_argument("--which", choices=("final", "best"), default="final", help="of a run")
    parser.add_argument("--task", help="the task (default: the run's, or the lab)")
    parser.add_argument("--samples", type=int, default=None, help="n of mean@n and best@n")
    parser.add_argument("--seed", type=int, default=None, help="default: the run's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_eval)


def _eval(options: argparse.Namespace) -> int:
    from resd.api import evaluate_model
    from resd.view import describe

    result = evaluate_model(
        options.model, options.which, options.task, options.samples, options.seed
    )
    if result.failed:
        print(
            f"warning: the environment failed on {result.failed} responses, which count as not "
            f"passed; the first: {result.first_failure}",
            file=sys.stderr,
        )
    print(json.dumps(result.row()) if options.json else describe(result))
    return 0


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
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from resd.report.compare import compare, parse_seeds, parse_variants

    shared = [_assignment(text) for text in options.set]
    variants = parse_variants(options.methods, options.variant, _assignment)
    return compare(
        options.config, variants, parse_seeds(options.seeds), shared, options.jobs, options.output
    )


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
    from resd.runs.directory import read_config

    read_config(options.run_directory)
    file = options.run_directory / ("playbook.json" if options.json else "playbook.md")
    if not file.is_file():
        raise UserError(f"{options.run_directory} has no playbook (yet): only resd keeps one")
    print(file.read_text(encoding="utf-8"), end="")
    return 0


def _lab_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    pretrain = actions.add_parser("pretrain", help="remake the base model (about an hour)")
    pretrain.add_argument("--output", type=Path, required=True, help="directory for the model")
    pretrain.add_argument(
        "--steps", type=int, default=None, help="most batches a stage; default: all"
    )
    pretrain.add_argument("--seed", type=int, default=0, help="of tokenizer and weights")
    pretrain.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    pretrain.set_defaults(run=_lab_pretrain)
    gates = actions.add_parser("gates", help="measure the gates of a base model")
    gates.add_argument("model", nargs="?", default="lab", help="directory; default: as shipped")
    gates.add_argument("--number", type=int, default=1000, help="prompts per gate")
    gates.set_defaults(run=_lab_gates)


def _lab_pretrain(options: argparse.Namespace) -> int:
    from resd.tasks.lab.pretrain import PretrainConfig, pretrain

    config = PretrainConfig(seed=options.seed, threads=options.threads)
    if options.steps is not None:
        config.stages = tuple(
            replace(stage, stop=min(stage.stop, options.steps)) for stage in config.stages
        )
    if options.output.is_dir() and any(options.output.iterdir()):
        raise UserError(f"output directory {options.output} is not empty")
    pretrain(options.output, config)
    return 0


def _lab_gates(options: argparse.Namespace) -> int:
    from resd.config import ModelConfig
    from resd.model import load_model, load_tokenizer
    from resd.tasks.lab.gates import describe_gates
    from resd.tasks.lab.pretrain import final_gates

    tokenizer = load_tokenizer(options.model)
    model = load_model(ModelConfig(path=options.model))
    gates = final_gates(model, tokenizer, options.number)
    text, passed = describe_gates(gates)
    print(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
