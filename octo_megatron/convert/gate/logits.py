"""Parts 2 and 3: the folder in Megatron gives the numbers that it gives in `transformers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from octo_megatron.convert.gate.megatron_forward import megatron_logits
from octo_megatron.convert.gate.result import GateError
from octo_megatron.convert.gate.transformers_forward import Reference
from octo_megatron.model.hf_folder import HfFolder

LOGIT_LIMIT = 1e-4
"""Part 2: largest |Megatron - transformers| of a logit in FP32."""
ARGMAX_LIMIT, KL_LIMIT, LOSS_LIMIT = 0.999, 1e-3, 1e-3
"""Part 3, in BF16: share of positions with the same best token; mean KL divergence in nats; loss in nats a token."""
PROMPT_TOKENS = (16, 48, 64)
"""Lengths of the fixed prompts of part 2."""


def prompts(vocab_size: int) -> list[Tensor]:
    """The fixed prompts: token ids from a seeded generator, spread over the vocabulary."""
    generator = torch.Generator().manual_seed(20)
    return [torch.randint(0, vocab_size, (n,), generator=generator) for n in PROMPT_TOKENS]


def documents(folder: HfFolder) -> tuple[list[Tensor], str]:
    """The fixed documents (documents.json) as token ids, and by what: the folder's tokenizer, or bytes without one."""
    texts = json.loads(resources.files(__package__).joinpath("documents.json").read_text(encoding="utf-8"))
    vocab_size, longest = int(folder.config["vocab_size"]), int(folder.config["max_position_embeddings"])
    file = folder.path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
        ids, how = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts], "its tokenizer"
    except Exception:  # tokenizers raises bare Exception: no such file, or no tokenizer in it
        ids, how = [list(text.encode()) for text in texts], "their bytes (no tokenizer.json that can be read)"
    return [torch.tensor(one[:longest]) % vocab_size for one in ids], how


def check_fp32(folder: HfFolder, reference: Reference) -> tuple[str, dict[str, Any]]:
    """Part 2.

    Raises:
        GateError: a logit is further off than LOGIT_LIMIT; the worst position is named.
    """
    asked = prompts(int(folder.config["vocab_size"]))
    worst, place = 0.0, (0, 0, 0)
    ours = megatron_logits(folder.read, folder.config, "fp32", asked)
    for index, (mine, theirs) in enumerate(zip(ours, reference.logits(asked), strict=True)):
        gap = (mine - theirs).abs().nan_to_num(nan=float("inf"))
        row, token = divmod(int(gap.argmax()), gap.shape[1])
        if float(gap.max()) >= worst:
            worst, place = float(gap.max()), (index, row, token)
    if not worst <= LOGIT_LIMIT:
        raise GateError(
            f"logits differ from transformers by {worst:.3g} (limit {LOGIT_LIMIT:g}), worst at position {place[1]} of "
            f"prompt {place[0]}, token {place[2]}: one side reads config.json or weights differently"
        )
    positions = sum(PROMPT_TOKENS)
    return (
        f"largest |Megatron - transformers| of a logit {worst:.2g} (limit {LOGIT_LIMIT:g}) over {positions} positions "
        f"x {folder.config['vocab_size']} tokens",
        {"max_logit_difference": worst, "positions_compared": positions},
    )


def check_bf16(folder: HfFolder, load: Callable[[], Reference]) -> tuple[str, dict[str, Any]]:
    """Part 3: both sides in BF16 on the fixed documents.

    Raises:
        GateError: one of the three limits is exceeded.
    """
    asked, how = documents(folder)
    same = positions = 0
    divergence = mine_nats = theirs_nats = 0.0
    ours = megatron_logits(folder.read, folder.config, "bf16", asked)
    for ids, mine, theirs in zip(asked, ours, load().logits(asked), strict=True):
        same += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
        positions += len(ids)
        p, q = theirs.double().log_softmax(-1), mine.double().log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        mine_nats -= float(q[:-1].gather(1, ids[1:, None]).sum())
        theirs_nats -= float(p[:-1].gather(1, ids[1:, None]).sum())
    predicted = positions - len(asked)
    share, kl = same / positions, divergence / positions
    loss, reference_loss = mine_nats / predicted, theirs_nats / predicted
    figures = {
        "bf16_same_argmax": share,
        "bf16_kl": kl,
        "bf16_loss": loss,
        "bf16_loss_transformers": reference_loss,
        "bf16_positions": positions,
    }
    line = (
        f"BF16 on {len(asked)} documents ({positions} positions by {how}): same best token {share:.4%} (limit "
        f"{ARGMAX_LIMIT:.1%}), KL {kl:.2g} (limit {KL_LIMIT:g}), loss {loss:.5f} against {reference_loss:.5f} "
        f"(limit {LOSS_LIMIT:g} apart)"
    )
    if not (share >= ARGMAX_LIMIT and kl <= KL_LIMIT and abs(loss - reference_loss) <= LOSS_LIMIT):
        raise GateError(line)
    return line, figures
