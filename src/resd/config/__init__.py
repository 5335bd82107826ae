"""A run's configuration: what there is to set (`run`), and where it comes from (`load`)."""

from resd.config.anchors import AnchorConfig
from resd.config.checkpoint import CheckpointConfig
from resd.config.evaluation import EvalConfig
from resd.config.handoff import SwitchConfig
from resd.config.health import HealthConfig
from resd.config.load import (
    load_config,
    merge,
    preset_names,
    read_stream,
    read_toml,
    set_dotted,
    validate,
)
from resd.config.methods import MethodConfig, find_method
from resd.config.part import Part
from resd.config.run import (
    ENGINES,
    METHODS,
    DistillConfig,
    EngineConfig,
    GrpoConfig,
    HandoffConfig,
    LoraConfig,
    ModelConfig,
    ResdConfig,
    RolloutConfig,
    RunConfig,
    SdpoConfig,
    SdpoSsConfig,
    TeacherConfig,
    TrainConfig,
)
from resd.config.stream import StreamPart
from resd.config.traces import TracesConfig

__all__ = [
    "ENGINES",
    "METHODS",
    "AnchorConfig",
    "CheckpointConfig",
    "DistillConfig",
    "EngineConfig",
    "EvalConfig",
    "GrpoConfig",
    "HandoffConfig",
    "HealthConfig",
    "LoraConfig",
    "MethodConfig",
    "ModelConfig",
    "Part",
    "ResdConfig",
    "RolloutConfig",
    "RunConfig",
    "SdpoConfig",
    "SdpoSsConfig",
    "StreamPart",
    "SwitchConfig",
    "TeacherConfig",
    "TracesConfig",
    "TrainConfig",
    "find_method",
    "load_config",
    "merge",
    "preset_names",
    "read_stream",
    "read_toml",
    "set_dotted",
    "validate",
]
