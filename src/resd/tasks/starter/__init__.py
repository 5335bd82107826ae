"""What `resd tasks new NAME` writes: a package with a starter environment and its tests."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from resd.errors import UserError

_HERE = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# What is written, and what it is made of.
_FILES = {
    "pyproject.toml": "pyproject.template",
    "README.md": "readme.template",
    "src/@NAME@/__init__.py": "init.template",
    "src/@NAME@/task.py": "scheduler.py",
    "tests/test_@NAME@.py": "check_scheduler.py",
}


def write_starter(name: str, directory: Path) -> tuple[Path, str]:
    """Write the package NAME, which pip installs and whose tests pass.

    Args:
        name: of the package and its module, in lower case; the class is named after it.
        directory: where to; made if it is not there.

    Returns:
        The package's directory, and the name of the class.

    Raises:
        UserError: the name is no module name or is taken, or something is there already.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(
            f"a task's name is that of a Python module (lower case letters, digits, _), found "
            f"{name!r}"
        )
    place = directory / name
    if place.exists():
        raise UserError(f"{place} is there already; choose another name or --directory")
    if importlib.util.find_spec(name) is not None:
        raise UserError(f"there is a Python module {name} already; choose another name")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    try:
        for target, source in _FILES.items():
            file = place / target.replace("@NAME@", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = (_HERE / source).read_text(encoding="utf-8")
            text = text.replace("from resd.tasks.starter.scheduler", f"\nfrom {name}")
            text = text.replace("scheduler.py:", f"{name}:")
            text = text.replace("Scheduler", class_name).replace("@NAME@", name)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    return place, class_name
