"""Tasks, methods and engines of one's own: in a file, in a module, or of an installed package.

Each is named `path/to/file.py:NAME`, `module:NAME`, or as an installed package names it by an entry
point of the group `resd.tasks`, `resd.methods` or `resd.engines`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from resd.errors import UserError

Kind = Literal["task", "method", "engine"]

_OWN = Path(__file__).resolve().parent
# Source and module of each file of a method or an engine: configuration and loop want one class.
_loaded: dict[tuple[Kind, Path], tuple[bytes, ModuleType]] = {}
_files_at_work: list[Path] = []


def installed(kind: Kind) -> dict[str, str]:
    """What installed packages offer: `module:NAME` by name, in the order of the names.

    Raises:
        UserError: two packages offer different things under one name.
    """
    found: dict[str, str] = {}
    points = metadata.entry_points(group=f"resd.{kind}s")
    for point in sorted(points, key=lambda point: point.name):
        place = f"{point.module}:{point.attr}"
        if found.setdefault(point.name, place) != place:
            raise UserError(
                f"two installed packages offer a {kind} {point.name}: {found[point.name]} and "
                f"{place}; name the one that is meant so, or uninstall the other"
            )
    return found


def place_of(kind: Kind, name: str) -> str | None:
    """Where something that is not built in lies, as FILE.py:NAME or module:NAME; or None."""
    where, _, inside = name.rpartition(":")
    return name if where and inside else installed(kind).get(name)


def spec_of(cls: type[Any]) -> str | None:
    """FILE.py:NAME or module:NAME under which a class is found again; None if it is nowhere.

    Nowhere are classes of a notebook or an interactive session, and those inside a function.
    """
    module, name = sys.modules.get(cls.__module__), cls.__qualname__
    if module is None or getattr(module, name, None) is not cls:
        return None
    where, file = cls.__module__, getattr(module, "__file__", None)
    if where == "__main__" and module.__spec__ is not None:  # python -m package.module
        return f"{module.__spec__.name}:{name}"
    found = PathFinder.find_spec(where.partition(".")[0])
    if where != "__main__" and found is not None:
        return f"{where}:{name}"
    return f"{Path(file).resolve()}:{name}" if file and file.endswith(".py") else None


def load(kind: Kind, place: str, wanted: Callable[[Any], bool], what: str) -> Any:
    """Import what `place_of` found.

    Args:
        kind: of what is loaded.
        place: `FILE.py:NAME` or `module:NAME`.
        wanted: whether an object is what is looked for.
        what: that, in a word or two.

    Raises:
        UserError: the file or module fails, or holds no such thing.
    """
    where, _, name = place.rpartition(":")
    file = where.endswith(".py")
    module = _import_file(kind, Path(where)) if file else _import_module(kind, where)
    found = getattr(module, name, None)
    if not wanted(found):
        own = [
            n
            for n, value in vars(module).items()
            if wanted(value) and getattr(value, "__module__", module.__name__) == module.__name__
        ]
        raise UserError(
            f"{kind} {place}: no {what} {name} in {where}; it has: {', '.join(own) or 'none'}"
        )
    return found


def file_at_work() -> Path | None:
    """The file of a task, method or engine whose code runs now because it is being imported."""
    return _files_at_work[-1] if _files_at_work else None


@contextmanager
def _at_work(path: Path) -> Iterator[None]:
    _files_at_work.append(path)
    try:
        yield
    finally:
        _files_at_work.pop()


def _import_file(kind: Kind, path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{kind} file {path} does not exist")
    key, source = (kind, path.resolve()), path.read_bytes()
    # Every environment gets a module of its own, with whatever its file keeps there.
    if kind != "task" and key in _loaded and _loaded[key][0] == source:
        return _loaded[key][1]
    name = f"resd_{kind}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # The file may import its neighbours, as when it is run as a program.
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(str(path.parent.resolve()))
    try:
        with _at_work(path):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{kind} file {path} failed: {describe_error(error)}") from None
    _loaded[key] = source, module
    return module


def _import_module(kind: Kind, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{kind} module {name} cannot be imported: {describe_error(error)}"
        ) from None


def describe_error(error: BaseException) -> str:
    """The error in one line, with the innermost place in the user's code."""
    kind = type(error).__name__
    try:
        text = " ".join(str(error).split())[:300]
    except Exception:  # its own __str__ may fail
        text = ""
    said = f"{kind}: {text}" if text else kind
    if isinstance(error, SyntaxError):
        return said if "line" in text else f"{said} (line {error.lineno})"
    places = [
        (Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
    ]
    own = [(file, line) for file, line in places if not _is_library(file)]
    if not own:
        return said
    file, line = own[-1]
    return f"{said} ({file.name}, line {line})"


def _is_library(file: Path) -> bool:
    """Whether a file belongs to Python, to an installed package, or to this one."""
    text = str(file)
    return (
        text.startswith("<")
        or "site-packages" in file.parts
        or text.startswith((sysconfig.get_paths()["stdlib"], str(_OWN)))
    )
