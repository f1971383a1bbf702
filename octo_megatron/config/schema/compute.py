"""How a step is computed: memory against time, FP8 in detail. Nothing here changes what a step means."""

from __future__ import annotations

from dataclasses import dataclass, field

from octo_megatron.config.schema.checks import require

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class ComputeConfig:
    """Measures that save memory or time. Results agree up to rounding, so a run may go on with others."""

    recompute: str = "none"
    """none; selective: `recompute_modules` again in the backward pass; full: every layer again."""
    recompute_modules: list[str] = field(default_factory=lambda: ["core_attn"])
    """For selective: core_attn, mlp, layernorm (the last with Transformer Engine only)."""
    lm_head_chunk_tokens: int = 0
    """Tokens whose logits exist at a time, computed again in the backward pass; 0: all tokens of a micro-batch.
    Without effect on an RL update that asks for entropies: they are made of whole rows of logits."""
    fp8_params: bool = False
    """fp8-*: keep the layers' weights in FP8 and gather them as such over data-parallel ranks. Saves memory and
    traffic; on one H100 it was slower (../shared/design/engines_on_gpu.md), and imported weights start rounded."""
    bf16_first_layers: int = 0
    """fp8-tensorwise and fp8-blockwise: this many first layers stay in BF16."""
    bf16_last_layers: int = 0
    """fp8-tensorwise and fp8-blockwise: this many last layers stay in BF16."""

    def __post_init__(self) -> None:
        require(
            self.recompute in RECOMPUTE,
            f"compute.recompute is '{self.recompute}'; use {', '.join(RECOMPUTE[:-1])} or {RECOMPUTE[-1]}",
        )
        wrong = [name for name in self.recompute_modules if name not in ("core_attn", "mlp", "layernorm")]
        require(
            not wrong and bool(self.recompute_modules),
            f"compute.recompute_modules is {self.recompute_modules}; use core_attn, mlp and layernorm",
        )
        for name in ("lm_head_chunk_tokens", "bf16_first_layers", "bf16_last_layers"):
            require(
                getattr(self, name) >= 0, f"compute.{name} is {getattr(self, name)}; it must be at least 0"
            )

    @property
    def bf16_layers(self) -> int:
        """Layers that stay in BF16 under an fp8-* precision."""
        return self.bf16_first_layers + self.bf16_last_layers
