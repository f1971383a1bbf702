"""One scenario with the real vLLM in a process of its own, run twice; the tests look at what it saw."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")
pytestmark = pytest.mark.slow

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def scenario(folder: Path) -> dict:
    """Everything the tests below want to know."""
    import gc

    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from octo_megatron.config.errors import UserError
    from octo_megatron.parallel import device  # noqa: F401  (the engine must work beside Megatron's substitutions)

    def state() -> list:
        rng = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
        return [
            dict(os.environ),
            rng,
            torch.set_num_threads.__module__,
            torch.get_num_threads(),
            gc.isenabled(),
        ]

    def model(seed: int, tied: bool) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        # weights large enough that predictions are far from uniform
        config = LlamaConfig(**SHAPE, tie_word_embeddings=tied, initializer_range=0.15, eos_token_id=0)
        return LlamaForCausalLM(config).eval()

    def items(m: LlamaForCausalLM) -> list:
        tied = m.config.tie_word_embeddings
        return [(n, p.detach()) for n, p in m.state_dict().items() if not (tied and n == "lm_head.weight")]

    out: dict = {}
    torch.manual_seed(7)
    before = state()
    from octo_megatron.engine.vllm_engine import Engine, Sampling

    a, b, u, v = model(1, True), model(2, True), model(3, False), model(4, False)
    for name, m in (("tied", a), ("untied", u)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(m.config.to_json_string(use_diff=True))
    torch.manual_seed(7)
    engine = Engine(folder / "tied", "fp32", max_model_len=256, max_num_seqs=32)
    r = random.Random(0)
    prompts = [[r.randrange(1, 512) for _ in range(n)] for n in (5, 100, 17, 64, 100, 1, 150, 33) * 5]
    prompts[20:28] = [prompts[1]] * 8  # a group of samples of one prompt, as RL asks for
    sampled = Sampling(40, 1.0, seeds=range(len(prompts)), stop_ids=(0,))
    greedy = Sampling(40, 0.0, stop_ids=(0,))

    def ask(e: Engine) -> list:
        return [[[c.token_ids, c.logprobs, c.finished, c.weight_version] for c in e.generate(prompts, s)]
                for s in (sampled, greedy)]  # fmt: skip

    engine.load_weights(items(a), version=1)
    out["A"] = ask(engine)
    after = state()
    out["kept"] = [x == y for x, y in zip(before, after, strict=True)]
    engine.load_weights(items(b), version=2)
    out["A_then_B"] = ask(engine)
    engine.load_weights(iter(items(a)), version=3)
    out["A_again"] = ask(engine)
    fresh = Engine(folder / "tied", "fp32", max_model_len=256, max_num_seqs=32)
    fresh.load_weights(items(b), version=2)
    out["fresh_B"] = ask(fresh)
    untied = Engine(folder / "untied", "fp32", max_model_len=256, max_num_seqs=32)
    untied.load_weights(items(v), version=1)
    untied.load_weights(items(u), version=2)
    out["untied"] = ask(untied)

    def gap(m: LlamaForCausalLM, answers: list) -> float:
        worst = 0.0
        for p, (ids, logprobs, *_) in zip(prompts, answers, strict=True):
            with torch.no_grad():
                ref = m(torch.tensor([p + ids])).logits[0].log_softmax(-1)
            ref = ref[len(p) - 1 : -1].gather(1, torch.tensor(ids)[:, None])[:, 0]
            worst = max(worst, (ref - torch.tensor(logprobs)).abs().max().item())
        return worst

    out["gap_tied"], out["gap_untied"] = gap(a, out["A"][0]), gap(u, out["untied"][0])
    with torch.no_grad():
        p = a(torch.tensor([prompts[0]])).logits[0, -1].softmax(-1)
    draws = engine.generate(
        [prompts[0]] * 4000, Sampling(1, 1.0, seeds=[(i * 7919) % 2**31 for i in range(4000)])
    )
    counts = torch.bincount(torch.tensor([d.token_ids[0] for d in draws]), minlength=512).float()
    out["distance"] = (counts / 4000 - p).abs().sum().item() / 2
    ideal = torch.distributions.Multinomial(4000, probs=p).sample() / 4000
    out["distance_of_torch"] = (ideal - p).abs().sum().item() / 2
    errors = []
    for wrong in (items(a)[:-1], [*items(a), ("model.extra.weight", torch.zeros(1))], items(u)):
        try:
            engine.load_weights(wrong, 9)
        except ValueError as error:
            errors.append(str(error))
    try:
        Engine(folder / "tied", "fp32", max_model_len=1000, max_num_seqs=4)
    except UserError as error:
        errors.append(str(error))
    for e in (engine, fresh, untied):
        e.close()
    out["left_groups"] = torch.distributed.is_initialized()
    return {**out, "errors": errors}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The scenario, in two processes one after the other."""
    found = []
    for number in (1, 2):
        folder = tmp_path_factory.mktemp(f"engine{number}")
        done = subprocess.run(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
        found.append(json.loads((folder / "out.json").read_text()))
    return found


def test_same_seeds_same_tokens_in_another_process(runs):
    assert runs[0]["A"] == runs[1]["A"]
    assert runs[0]["A_then_B"] == runs[1]["A_then_B"]


def test_pushed_weights_equal_a_fresh_engine(runs):
    seen = runs[0]
    assert seen["A_then_B"] == seen["fresh_B"]
    assert seen["A_then_B"] != seen["A"]
    assert [[c[:3] for c in part] for part in seen["A_again"]] == [
        [c[:3] for c in part] for part in seen["A"]
    ]


def test_logprobs_are_those_of_transformers(runs):
    assert runs[0]["gap_tied"] <= 1e-4
    assert runs[0]["gap_untied"] <= 1e-4


def test_answers_carry_version_and_end(runs):
    for part in runs[0]["A_again"]:
        for ids, logprobs, finished, version in part:
            assert version == 3 and len(ids) == len(logprobs) and 1 <= len(ids) <= 40
            assert finished == (ids[-1] == 0) and 0 not in ids[:-1]
            assert finished or len(ids) == 40
    assert len({tuple(c[0]) for c in runs[0]["A"][0][20:28]}) > 1  # samples of one prompt differ
    assert len({tuple(c[0]) for c in runs[0]["A"][1][20:28]}) == 1  # greedy ones do not


def test_sampling_follows_the_distribution(runs):
    assert runs[0]["distance"] < 1.25 * runs[0]["distance_of_torch"] + 0.01


def test_the_process_is_left_as_it_was(runs):
    assert runs[0]["kept"] == [True] * 5
    assert runs[0]["left_groups"] is False


def test_wrong_weights_and_lengths_are_refused(runs):
    errors = runs[0]["errors"]
    assert len(errors) == 4
    assert "did not come" in errors[0] and "model.extra.weight" in errors[1] and "lm_head" in errors[2]
    assert "max_position_embeddings" in errors[3]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "out.json").write_text(json.dumps(scenario(target)))
