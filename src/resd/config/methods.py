"""Settings of methods that are not built in: their class says what they are."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import ConfigDict, Field, create_model

from resd import plugins
from resd.config.anchors import AnchorConfig
from resd.config.part import Part
from resd.config.run import METHODS, DistillConfig, GrpoConfig, RunConfig
from resd.errors import UserError, close_to


class MethodConfig(Part):
    """What every method has to set; a method of one's own adds its fields to these.

    Or it takes those of a built-in method (`ResdConfig`, `SdpoConfig`, `GrpoConfig`) and adds to
    them.
    """

    name: str = Field("", description="the method")
    rollouts: int = Field(1, ge=1, description="rollouts per prompt")
    aggregation: Literal["token_mean", "sample_mean", "released"] = Field(
        "sample_mean", description="mean over tokens, over samples, or as the released scripts"
    )
    anchors: AnchorConfig = Field(default_factory=AnchorConfig, description="against forgetting")

    @property
    def most_rollouts(self) -> int:
        """Responses a prompt, at most."""
        return self.rollouts


class _AnyMethodConfig(MethodConfig):
    """Settings as they are, unchecked: whoever only looks at a run runs none of its code."""

    model_config = ConfigDict(extra="allow")


def find_method(name: str) -> type[Any]:
    """The class of a method that is not built in.

    Args:
        name: `path/to/file.py:Class`, `module:Class`, or as an installed package names it.

    Raises:
        UserError: there is none, or it says nothing of its settings.
    """
    place = plugins.place_of("method", name)
    if place is None:
        known = [*METHODS, *plugins.installed("method")]
        raise UserError(
            f"unknown method {name!r:.80}{close_to(name, known)}; known: {', '.join(known)}; your "
            "own: path/to/file.py:Class or module:Class"
        )
    cls: type[Any] = plugins.load("method", place, _is_method, "method")
    settings = getattr(cls, "config_class", None)
    if not (
        isinstance(settings, type)
        and issubclass(settings, MethodConfig | DistillConfig | GrpoConfig)
    ):
        raise UserError(
            f"method {place}: {cls.__name__}.config_class must be a class of settings: "
            "resd.config.MethodConfig, or one that is derived from it"
        )
    return cls


def _is_method(found: Any) -> bool:
    return isinstance(found, type) and hasattr(found, "per_token")


def settings_class(name: object, *, own_code: bool = True) -> type[Part] | None:
    """The settings of a method; None if there is no such method.

    Args:
        name: of the method.
        own_code: import one that is not built in, to check its settings.

    Raises:
        UserError: its code fails.
    """
    if not isinstance(name, str):
        return None
    if name in METHODS:
        return METHODS[name]
    if not own_code:
        return _AnyMethodConfig
    if plugins.place_of("method", name) is None:
        return None
    own = find_method(name).config_class
    # Whatever it is derived from, it goes by its own name.
    goes_by: Any = (Literal[name], Field(name, description="the method"))
    fields = {"name": goes_by}
    made: Any = create_model(own.__name__, __base__=own, __module__=own.__module__, **fields)
    return cast("type[Part]", made)


def run_class(method: type[Part]) -> type[RunConfig]:
    """The configuration of a run whose method has these settings."""
    settings: Any = (method, Field(description="the method"))
    made: type[RunConfig] = create_model("RunConfig", __base__=RunConfig, method=settings)
    return made
