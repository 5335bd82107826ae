"""The resolved configuration of a run, as it lies in its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from resd.config import RunConfig, read_toml, validate
from resd.errors import UserError


def config_text(config: RunConfig) -> str:
    """A configuration as TOML.

    TOML has no null: what is None stands as "none", which `validate` reads back.
    """
    return tomli_w.dumps(_without_nulls(config.model_dump(mode="json")))


def read_config(path: Path, *, own_code: bool = False) -> RunConfig:
    """The configuration of a run.

    Args:
        path: its directory.
        own_code: the run is to be gone on with: import a method that is not built in. Whoever only
            looks at a run runs none of its code.

    Raises:
        UserError: there is no run at `path`.
    """
    if not path.is_dir():
        raise UserError(f"there is no run directory {path}")
    file = path / "config.toml"
    if not file.is_file():
        raise UserError(f"{path} is no run directory: it has no config.toml")
    return validate(read_toml(file), f"in {file}", own_code=own_code)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return "none" if value is None else value
