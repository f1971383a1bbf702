"""Part 5: greedy generation of 64 tokens is the same in transformers, in vLLM and in Megatron.

Megatron gets transformers' tokens: greedy decoding gives exactly a sequence if and only if each of its tokens is the
best one after those before it, so one pass over prompt and answer decides what 64 passes would.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_megatron.convert.gate.logits import documents
from octo_megatron.convert.gate.megatron_forward import megatron_logits
from octo_megatron.convert.gate.result import GateError
from octo_megatron.convert.gate.transformers_forward import Reference
from octo_megatron.model.hf_folder import HfFolder

TOKENS = 64
_PROMPTS, _PROMPT_TOKENS = 3, 16
_VLLM = "octo_megatron.engine.from_folder"
"""Run as a process of its own: vLLM changes the process it is loaded into, and a user starts it that way."""
_VLLM_SECONDS = 900


def vllm_is_missing() -> str | None:
    """Why vLLM cannot be asked, None when it can."""
    return None if importlib.util.find_spec("vllm") else "vLLM is not installed"


def check(folder: HfFolder, reference: Reference, vllm: bool) -> tuple[str, dict[str, Any]]:
    """Generate from the first tokens of the fixed documents, in FP32.

    Raises:
        GateError: an engine gives another token; where, and how close the two were.
    """
    room = int(folder.config["max_position_embeddings"])
    tokens = min(TOKENS, room - _PROMPT_TOKENS)
    if tokens < 1:
        raise GateError(
            f"max_position_embeddings={room} leaves no room for {_PROMPT_TOKENS} tokens and an answer"
        )
    asked = [ids[:_PROMPT_TOKENS] for ids in documents(folder)[0][:_PROMPTS]]
    answers = [reference.generate(prompt, tokens) for prompt in asked]
    _compare_megatron(folder, asked, answers)
    who = "transformers and Megatron"
    if vllm:
        for index, (answer, other) in enumerate(
            zip(answers, _ask_vllm(folder.path, asked, tokens), strict=True)
        ):
            if answer != other:
                at = next(i for i, pair in enumerate(zip(answer, other, strict=True)) if pair[0] != pair[1])
                raise GateError(
                    f"vLLM's token {at} after prompt {index} is {other[at]}, transformers' is {answer[at]}: the two "
                    "load the folder differently, or its best tokens are too close to tell apart"
                )
        who = "transformers, vLLM and Megatron"
    return f"{tokens} greedy tokens after {len(asked)} prompts equal in {who}", {
        "generated_tokens": tokens * len(asked),
        "generated_by": who,
        "asked_vllm": vllm,
    }


def _compare_megatron(folder: HfFolder, asked: list[Tensor], answers: list[list[int]]) -> None:
    whole = [torch.cat([prompt, torch.tensor(answer)]) for prompt, answer in zip(asked, answers, strict=True)]
    for index, logits in enumerate(megatron_logits(folder.read, folder.config, "fp32", whole)):
        start = len(asked[index]) - 1
        for at, token in enumerate(answers[index]):
            row = logits[start + at]
            best = int(row.argmax())
            if best != token:
                raise GateError(
                    f"Megatron's token {at} after prompt {index} is {best}, transformers' is {token} (their logits in "
                    f"Megatron are {float(row[best] - row[token]):.2g} apart)"
                )


def _ask_vllm(folder: Path, asked: list[Tensor], tokens: int) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as work:
        request, result = Path(work) / "request.json", Path(work) / "result.json"
        request.write_text(json.dumps({"prompts": [ids.tolist() for ids in asked], "tokens": tokens}))
        command = [sys.executable, "-m", _VLLM, str(folder.absolute()), str(request), str(result)]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=_VLLM_SECONDS)
        except subprocess.TimeoutExpired:
            raise GateError(f"vLLM gave no answer from {folder} within {_VLLM_SECONDS} s") from None
        if ran.returncode or not result.is_file():
            lines = [line for line in ran.stderr.splitlines() if line.strip()]
            said = next(
                (line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "nothing"
            )
            raise GateError(f"vLLM does not generate from {folder}: {said.strip()}")
        return [list(map(int, answer)) for answer in json.loads(result.read_text())]
