"""What each method does with a scored batch. One method is one small class and one config."""

from __future__ import annotations

from resd.config import GrpoConfig, Part, ResdConfig, SdpoConfig, SdpoSsConfig
from resd.methods.base import Method, Services
from resd.methods.grpo import Grpo
from resd.methods.resd import Resd
from resd.methods.sdpo import Sdpo, SdpoSs


def make_method(config: Part, services: Services) -> Method:
    """The method that a configuration names."""
    if isinstance(config, ResdConfig):
        return Resd(config, services)
    if isinstance(config, SdpoSsConfig):
        return SdpoSs(config, services)
    if isinstance(config, SdpoConfig):
        return Sdpo(config, services)
    if isinstance(config, GrpoConfig):
        return Grpo(config, services)
    raise TypeError(f"no method for {type(config).__name__}")


__all__ = ["Grpo", "Method", "Resd", "Sdpo", "SdpoSs", "make_method"]
