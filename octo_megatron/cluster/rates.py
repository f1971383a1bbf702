"""Training rates that were measured, and what they say about another model or length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from octo_megatron.config.errors import UserError
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.model_size import ModelSize, model_size
from octo_megatron.config.yaml_file import CONFIGS

RATES_FILE = CONFIGS / "measured_rates.yaml"


_NEAR = 8
"""Beyond this ratio of parameters a rate says nothing."""


@dataclass(frozen=True)
class Rate:
    """One measured run on one GPU."""

    model: str
    shape: str
    """Model file under `configs/`."""
    device: str
    precision: str
    seq_length: int
    micro_batch_size: int
    moments: str
    tokens_per_second: float
    peak_gib: float
    fp8_params: bool = False
    with_: str = ""

    @property
    def size(self) -> ModelSize:
        """The measured model's sizes."""
        return model_size(read_hf_config(self.shape))

    @property
    def tflops(self) -> float:
        """10^12 model operations a second."""
        return self.tokens_per_second * self.size.flops_per_token(self.seq_length) / 1e12

    def __str__(self) -> str:
        extra = f", {self.with_}" if self.with_ else ""
        return (
            f"{self.model} {self.precision}, {self.seq_length} x {self.micro_batch_size}, {self.moments} moments{extra}"
            f": {self.tokens_per_second:,.0f} tokens/s on one {self.device}"
        )


def measured(path: Path = RATES_FILE) -> list[Rate]:
    """The rows of the table.

    Raises:
        UserError: the file does not parse or a row lacks a value.
    """
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["rows"]
        return [
            Rate(**{key if key != "with" else "with_": value for key, value in row.items()}) for row in rows
        ]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no table of measured rates: {str(error).splitlines()[0]}") from None


def nearest(rates: list[Rate], size: ModelSize, precision: str, moments: str, seq_length: int) -> Rate | None:
    """The row to scale from: of this precision, nearest in size, then in length, moments and speed.

    None where every row's model is more than 8 times as large or as small.
    """
    of_precision = [
        rate
        for rate in rates
        if rate.precision == precision and 1 / _NEAR <= rate.size.parameters / size.parameters <= _NEAR
    ]

    def distance(rate: Rate) -> tuple[float, float, bool, float]:
        return (
            abs(math.log(rate.size.parameters / size.parameters)),
            abs(math.log(rate.seq_length / seq_length)),
            rate.moments != moments,
            -rate.tokens_per_second,
        )

    return min(of_precision, key=distance) if of_precision else None


def tokens_per_second(rate: Rate, size: ModelSize, seq_length: int) -> float:
    """Expected of one GPU: the operations a second of the row, at this model's operations a token."""
    return rate.tflops * 1e12 / size.flops_per_token(seq_length)
