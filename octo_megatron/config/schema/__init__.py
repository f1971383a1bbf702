"""The typed configuration of a lineage: what a YAML file under `configs/lineage/` may say; one file a section.

Every class is a frozen dataclass; `octo_megatron.config.loading` fills them through OmegaConf, which
refuses unknown keys and wrong types. `__post_init__` refuses impossible values, with the fix in the text.
"""

from octo_megatron.config.schema.compute import ComputeConfig
from octo_megatron.config.schema.convert import GATE_PARTS, ExportNode, ImportNode
from octo_megatron.config.schema.data import ProblemSetConfig, SourceConfig
from octo_megatron.config.schema.evaluate import EvaluateNode
from octo_megatron.config.schema.lineage import NODE_KINDS, LineageConfig
from octo_megatron.config.schema.mixture import MixtureConfig, MixtureSource
from octo_megatron.config.schema.node import NodeConfig
from octo_megatron.config.schema.optimizer import OptimizerConfig, ScheduleConfig
from octo_megatron.config.schema.parallel import ParallelConfig
from octo_megatron.config.schema.rl import RLNode
from octo_megatron.config.schema.train import TrainNode

__all__ = [
    "GATE_PARTS",
    "NODE_KINDS",
    "ComputeConfig",
    "EvaluateNode",
    "ExportNode",
    "ImportNode",
    "LineageConfig",
    "MixtureConfig",
    "MixtureSource",
    "NodeConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ProblemSetConfig",
    "RLNode",
    "ScheduleConfig",
    "SourceConfig",
    "TrainNode",
]
