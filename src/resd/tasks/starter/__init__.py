"""What `resd tasks new NAME` writes: a starter environment and its tests."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from resd.errors import UserError

_HERE = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def write_starter(name: str, directory: Path) -> tuple[Path, Path, str]:
    """Write NAME.py and test_NAME.py.

    Args:
        name: of the module, in lower case; the class is named after it.
        directory: where to; made if it is not there.

    Returns:
        The environment's file, its test's, and the name of the class.

    Raises:
        UserError: the name is no module name, or a file is there already.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(
            f"a task's name is that of a Python module (lower case letters, digits, _), found "
            f"{name!r}"
        )
    class_name = "".join(part.capitalize() for part in name.split("_"))
    files = directory / f"{name}.py", directory / f"test_{name}.py"
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already; choose another name or --directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, source in zip(files, ("scheduler.py", "check_scheduler.py"), strict=True):
            text = (_HERE / source).read_text(encoding="utf-8")
            text = text.replace("from resd.tasks.starter.scheduler", f"from {name}")
            text = text.replace("scheduler.py", f"{name}.py").replace("Scheduler", class_name)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    return *files, class_name
