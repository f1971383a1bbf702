"""vLLM on a Hugging Face folder as any user starts it: `python -m octo_megatron.engine.from_folder FOLDER IN OUT`.

IN: {"prompts": [[ids], ...], "tokens": n}. OUT: [[ids], ...], n greedy tokens after each prompt in FP32. The gate of a
conversion runs it in a process of its own, so nothing here protects the process from vLLM.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

_KV_BYTES = 1 << 30


def main(folder: str, request: Path, result: Path) -> None:
    """Read the request, generate, write the result."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    longest = max(len(ids) for ids in asked["prompts"])
    engine = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=longest + asked["tokens"],
        max_num_seqs=len(asked["prompts"]),
        kv_cache_memory_bytes=_KV_BYTES,
        disable_log_stats=True,
        generation_config="vllm",  # greedy and nothing else, whatever generation_config.json asks for
    )
    settings = SamplingParams(max_tokens=asked["tokens"], temperature=0.0, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    outputs = engine.generate(prompts, settings, use_tqdm=False)
    result.write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
