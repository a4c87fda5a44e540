"""A run as written in TOML (``configs/*.toml``): every key, its unit, and why its default is what it is. (No torch.)"""

from prism.config.alerts import AlertsConfig
from prism.config.data import DataConfig, DataName, DataNames, FormatName, data_configs
from prism.config.evaluation import (
    BenchmarkConfig,
    EvaluationConfig,
    JudgeConfig,
    SamplingConfig,
    ServerConfig,
)
from prism.config.grader import GraderConfig
from prism.config.learners import (
    ExpertLearnerConfig,
    ExpertStarts,
    GroundingConfig,
    LoraConfig,
    MixtureConfig,
    OptimizerConfig,
    PolicyLearnerConfig,
)
from prism.config.limited import LimitedSettings
from prism.config.limits import LIMITS_FILE, LimitsConfig, RunLimits, read_limits
from prism.config.load import as_toml, load_config, load_saved, load_toml, parse_saved, save_resolved, toml_value
from prism.config.published import published_keys
from prism.config.run import PrepareConfig, RunConfig
from prism.config.services import (
    DevicesConfig,
    DisentangleConfig,
    EvaluateConfig,
    LooksConfig,
    PushConfig,
    RolloutLogConfig,
    StackConfig,
)
from prism.config.stages import AlignConfig, RlvrConfig, RolloutConfig, SftConfig, Stage
from prism.config.strict import ConfigModel
from prism.config.track import TrackConfig

__all__ = [
    "LIMITS_FILE",
    "AlertsConfig",
    "AlignConfig",
    "BenchmarkConfig",
    "ConfigModel",
    "DataConfig",
    "DataName",
    "DataNames",
    "DevicesConfig",
    "DisentangleConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExpertLearnerConfig",
    "ExpertStarts",
    "FormatName",
    "GraderConfig",
    "GroundingConfig",
    "JudgeConfig",
    "LimitedSettings",
    "LimitsConfig",
    "LooksConfig",
    "LoraConfig",
    "MixtureConfig",
    "OptimizerConfig",
    "PolicyLearnerConfig",
    "PrepareConfig",
    "PushConfig",
    "RlvrConfig",
    "RolloutConfig",
    "RolloutLogConfig",
    "RunConfig",
    "RunLimits",
    "SamplingConfig",
    "ServerConfig",
    "SftConfig",
    "StackConfig",
    "Stage",
    "TrackConfig",
    "as_toml",
    "data_configs",
    "load_config",
    "load_saved",
    "load_toml",
    "parse_saved",
    "published_keys",
    "read_limits",
    "save_resolved",
    "toml_value",
]
