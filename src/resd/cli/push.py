"""`resd push`: a run's model, with its card, to the Hugging Face Hub."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from resd.errors import UserError

if TYPE_CHECKING:
    from resd.config import RunConfig

_WHICH = ("best", "final", "adapter")
# What loading from a directory leaves in a tokenizer's config, and is true of one machine alone.
_OF_ONE_MACHINE = ("is_local", "local_files_only", "name_or_path")
_LOGIN = "hf auth login, or set HF_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd push`."""
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="the run, complete")
    parser.add_argument("repository", metavar="REPO", help="OWNER/NAME, or NAME for your own")
    parser.add_argument(
        "--which", choices=_WHICH, default="best", help="default: best; adapter: those of the best"
    )
    parser.add_argument("--private", action="store_true", help="into a private repository")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check everything, then send it in one commit."""
    repository = options.repository
    _check_name(repository)
    files = files_of(options.run_directory, options.which, repository)
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        print(f"{size:>15,}  {name}")
    if options.dry_run:
        print(f"nothing was sent; without --dry-run it goes to {repository}")
        return 0
    print(f"sent to {_send(repository, files, options.private)}")
    return 0


def files_of(run_path: Path, which: str, repository: str) -> dict[str, bytes | Path]:
    """What is sent of a run, by its name in the repository; bytes where a text is another there.

    Args:
        run_path: the run.
        which: `best`, `final`, or `adapter`, which is that of `best`.
        repository: stands in the card.

    Raises:
        UserError: there is no such run or model, or a file names a place of this machine.
    """
    from resd.runs.card import NAME, PLACE, card_text
    from resd.runs.config_file import read_config

    config = read_config(run_path)
    try:
        best = int(json.loads((run_path / "done.json").read_text(encoding="utf-8"))["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{run_path} is not complete: go on with resd train --resume {run_path}"
        ) from None
    model = run_path / ("final" if which == "final" else "best")
    place = model / "adapter" if which == "adapter" else model
    if not place.is_dir():
        why = ": it trained all weights, so push --which best" if which == "adapter" else ""
        raise UserError(f"{run_path} has no {which}{why}")
    found = [file for file in sorted(place.rglob("*")) if file.is_file()]
    if which == "adapter":
        found += [*sorted(model.glob("tokenizer*")), *model.glob("chat_template.jinja")]
    files: dict[str, bytes | Path] = {}
    for file in found:
        # peft's README.md is an empty form that names the base model's directory.
        if file.parent.name != "adapter" or file.name != NAME:
            name = file.name if file.parent == model else file.relative_to(place).as_posix()
            files[name] = _portable(file, config)
    card = files.get(NAME)
    if isinstance(card, Path):
        text = card.read_text(encoding="utf-8")
    else:
        at = None if which == "final" else best
        text = card_text(run_path, config, at, adapter=which == "adapter")
    files[NAME] = text.replace(PLACE, repository).encode()
    _check_contents(files, list(_places(run_path, config)))
    return files


def _portable(file: Path, config: RunConfig) -> bytes | Path:
    """A file, or its content without what is true of this machine alone."""
    from resd.runs.base_model import look_at
    from resd.runs.remake import portable

    if file.name not in ("tokenizer_config.json", "adapter_config.json"):
        return file
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    for name in _OF_ONE_MACHINE:
        content.pop(name, None)
    if "base_model_name_or_path" in content:
        base = look_at(config.model.path).hub_id
        content["base_model_name_or_path"] = base or portable(content["base_model_name_or_path"])
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _places(run_path: Path, config: RunConfig) -> Iterator[str]:
    """Absolute paths that the run knows of."""
    from resd.runs import identity

    known = identity.load(run_path) or {}
    values = [text for text in _texts(config.model_dump(mode="json")) if text.startswith("/")]
    here = [run_path.resolve(), Path.home(), Path.cwd(), known.get("working_directory", "")]
    for place in {*values, *map(str, here)}:
        # A task's file has its class behind it; `/` and `/data` say little.
        path = place.rpartition(":")[0] or place
        if len(PurePath(path).parts) > 2:
            yield path


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _check_contents(files: Mapping[str, bytes | Path], places: list[str]) -> None:
    """Refuse to send what names a place of this machine.

    Raises:
        UserError: a file does; the weights are not looked through.
    """
    for name, content in files.items():
        if name.endswith(".safetensors"):
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        for place in places:
            if place.encode() in data:
                raise UserError(
                    f"{name} names {place}, a place of this machine; nothing was sent: take it out "
                    "of the file, and push again"
                )


def _check_name(repository: str) -> None:
    """Refuse what can be no repository, before anything is read.

    Raises:
        UserError: says what is wrong with it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        reason = str(error).partition(f"'{repository}'")[0].strip(" :")
        if repository.count("/") > 1:
            reason = "it has more than one /"
        raise UserError(
            f"REPO {repository!r:.120} is not OWNER/NAME, or NAME for your own: {reason}"
        ) from None


def _send(repository: str, files: Mapping[str, bytes | Path], private: bool) -> str:
    """Make the repository where there is none, and put the files there in one commit.

    Returns:
        Where it is.

    Raises:
        UserError: the hub says no, or does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError(f"there is no token for the Hugging Face Hub: {_LOGIN}")
    # Read here: huggingface_hub looks at it once, when it is imported.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    try:
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        is_public = private and not api.model_info(made.repo_id).private
        if not is_public:
            api.create_commit(made.repo_id, operations, commit_message="Model trained with resd")
    except Exception as error:
        raise _refusal(repository, api.endpoint, error) from None
    if is_public:
        raise UserError(
            f"--private: {repository} is there already, and public; nothing was sent: make it "
            "private in its settings, or choose another"
        )
    return str(made)


def _refusal(repository: str, endpoint: str, error: Exception) -> UserError:
    """What the user should know of a failure, in one line."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    said = getattr(cause, "server_message", None) or str(error).strip().partition("\n")[0]
    said = " ".join(str(said).split())[:300] or type(error).__name__
    if status == 401:
        return UserError(f"{endpoint} does not know the token (401): {_LOGIN}")
    if status == 403:
        return UserError(
            f"the token may not write to {repository} (403): take one that may; the hub says: "
            f"{said}"
        )
    if status is not None:
        return UserError(f"{endpoint} refused {repository} ({status}): {said}")
    return UserError(
        f"{endpoint} cannot be reached, or broke off: {type(error).__name__}: {said}; push again"
    )
