"""Rank script: recorded answers against the weights of every version. rl_version_logprobs.py RUN ANSWERS.jsonl.zst

RUN keeps a checkpoint after every step. Prints, for tokens of each version, the largest difference of their recorded
log-probabilities from those under that version's weights, and the mean difference under the version after or before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(root: Path, answers: Path) -> None:
    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.config.run_folder import read_json
    from octo_megatron.config.schema import OptimizerConfig, ParallelConfig
    from octo_megatron.parallel import world as worlds
    from octo_megatron.rl.per_token import per_token
    from octo_megatron.rl.records import read_zst
    from octo_megatron.rl.rollout import Sample
    from octo_megatron.train.megatron import MegatronTrainer

    layout = ParallelConfig()
    world = worlds.start(layout, 0)
    trainer = MegatronTrainer(read_json(root / "hf_config.json"), layout, "fp32", OptimizerConfig(), world)
    samples = [Sample(**row) for row in read_zst(answers)[1:]]
    folders = {0: store.finished(root / "nodes/base/checkpoints")[-1]}
    for folder in store.finished(root / "nodes/rl/checkpoints"):
        folders.setdefault(store.read_extra(folder)["weight_version"], folder)
    found = {}
    for version, folder in sorted(folders.items()):
        store.load_weights(folder, trainer.chunks)
        found[version] = torch.cat(per_token(samples, trainer.logprobs, 4096, layout, world))
    recorded = torch.tensor([p for s in samples for p in s.logprobs])
    of = torch.tensor([v for s in samples for v, count in s.versions for _ in range(count)])
    versions = sorted(found)
    out = {}
    for version in sorted(set(of.tolist())):
        mine = of == version
        place = versions.index(version)
        other = versions[place + 1] if place + 1 < len(versions) else versions[place - 1]
        out[version] = {
            "tokens": int(mine.sum()),
            "own": float((found[version] - recorded)[mine].abs().max()),
            "other": float((found[other] - recorded)[mine].abs().mean()),
        }
    print("RESULT " + json.dumps(out))
    world.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
