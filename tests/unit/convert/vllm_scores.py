"""vLLM on a Hugging Face folder as any user starts it: `vllm_scores.py FOLDER '[[ids], ...]'`.

Prints {"greedy": [[ids], ...], "logprobs": [[log p of each], ...]} for 16 tokens after each prompt.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from vllm import LLM, SamplingParams

    engine = LLM(
        sys.argv[1],
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=256,
        max_num_seqs=8,
        disable_log_stats=True,
    )
    settings = SamplingParams(max_tokens=16, temperature=0.0, logprobs=0, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
    answers = [output.outputs[0] for output in engine.generate(prompts, settings, use_tqdm=False)]
    result = {
        "greedy": [list(a.token_ids) for a in answers],
        "logprobs": [
            [row[token].logprob for token, row in zip(a.token_ids, a.logprobs, strict=True)] for a in answers
        ],
    }
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
