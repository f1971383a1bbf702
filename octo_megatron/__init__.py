"""octo_megatron: mid-training, reinforcement learning and evaluation as one verified lineage."""

__version__ = "0.1.0"
