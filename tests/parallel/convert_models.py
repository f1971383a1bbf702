"""Rank script: for each Hugging Face folder, import, save, export, and export another checkpoint.

convert_models.py '{"layout": {...}, "models": [{"hf": DIR, "load": CKPT, "save": CKPT, "out": DIR, ...}]}'

Prints one JSON line with the gate's largest logit differences and the weights' digest, a model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.checkpoint.digest import weights_sha256
    from octo_megatron.config.schema import ParallelConfig
    from octo_megatron.convert.hf_folder import write_folder
    from octo_megatron.convert.safetensors_io import HfFolder
    from octo_megatron.convert.verify import verify
    from octo_megatron.model.build import build_model
    from octo_megatron.model.hf_weights import import_weights
    from octo_megatron.parallel import world as worlds

    world = worlds.start(ParallelConfig(**options["layout"]), seed=3)
    results = []
    for paths in options["models"]:
        source = HfFolder(Path(paths["hf"]))
        models: list[torch.nn.Module] = list(build_model(source.config, world.layout, "fp32"))
        import_weights(models, source.config, source.read)
        imported = verify(source, models, world)
        sha256 = weights_sha256(models, source.config)
        store.save_weights(Path(paths["save"]), models, {"hf_config": source.config}, world)
        written = write_folder(Path(paths["out"]), models, source.config, "fp32", [source.path], world)
        result = {"import": imported.max_logit_difference, "export": written.verified.max_logit_difference}
        if "load" in paths:
            loaded: list[torch.nn.Module] = list(build_model(source.config, world.layout, "fp32"))
            store.load_weights(Path(paths["load"]), loaded)
            write_folder(Path(paths["out_loaded"]), loaded, source.config, "fp32", [source.path], world)
        results.append({**result, "weights_sha256": sha256})
    if world.is_first:
        print("RESULT " + json.dumps(results), flush=True)
    world.barrier()
    world.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
