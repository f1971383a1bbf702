"""Rank script: in one layout, read checkpoints that others wrote, fill models from Hugging Face folders, save.

convert_models.py '{"layout": {...}, "models": [{"hf": DIR, "load": CKPT, "save": CKPT}, ...]}'

Prints one JSON line: of each model the largest logit difference to transformers, and the weights' digest both ways.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    import torch

    from octo_megatron.checkpoint import store
    from octo_megatron.checkpoint.digest import weights_sha256
    from octo_megatron.checkpoint.hf_start import fill_from_folder
    from octo_megatron.config.schema import ParallelConfig
    from octo_megatron.convert.gate.logits import prompts
    from octo_megatron.convert.gate.transformers_forward import Reference
    from octo_megatron.model.build import build_model
    from octo_megatron.model.hf_folder import HfFolder
    from octo_megatron.parallel import world as worlds

    world = worlds.start(ParallelConfig(**options["layout"]), seed=3)
    results = []
    for paths in options["models"]:
        source = HfFolder(Path(paths["hf"]))
        models: list[torch.nn.Module] = list(build_model(source.config, world.layout, "fp32"))
        fill_from_folder(source.path, models, source.config)
        filled = weights_sha256(models, source.config)
        loaded: list[torch.nn.Module] = list(build_model(source.config, world.layout, "fp32"))
        store.load_weights(Path(paths["load"]), loaded)
        asked = prompts(source.config["vocab_size"])
        reference = torch.cat(list(Reference(source, "fp32", whole=True).logits(asked)))
        found = largest_difference(loaded, world.layout, asked, reference)
        store.save_weights(Path(paths["save"]), models, {"hf_config": source.config}, world)
        digests = {"filled": filled, "loaded": weights_sha256(loaded, source.config)}
        results.append({"difference": max(world.all_gather_object(found)), **digests})
    if world.is_first:
        print("RESULT " + json.dumps(results), flush=True)
    world.barrier()
    world.stop()


def largest_difference(models: list[Any], layout: Any, documents: list[Any], reference: Any) -> float:
    """|Megatron - reference| where this rank's share of the logits is furthest off.

    Each rank compares what it holds: its positions (context parallel) of its rows of the vocabulary (tensor
    parallel) on the last pipeline stage; others say 0.
    """
    import torch

    from octo_megatron.model.batch import Document, pack, slice_for_context_rank

    from megatron.core import parallel_state
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func

    start, packed = 0, []
    for ids in documents:
        rows = torch.arange(start, start + len(ids), dtype=torch.float32)
        packed.append(Document(ids, ids, torch.ones(len(ids)), {"row": rows}))
        start += len(ids)
    whole = pack(packed, layout)
    batch = slice_for_context_rank(
        whole, layout.context_parallel_size, parallel_state.get_context_parallel_rank()
    )
    for model in models:
        model.eval()

    def compare(logits: Any, non_loss_data: bool = True) -> float:
        real = batch.loss_mask[0] > 0
        ours = logits[0].float().cpu()[real]
        first = parallel_state.get_tensor_model_parallel_rank() * ours.shape[1]
        theirs = reference[batch.extras["row"][0][real].long(), first : first + ours.shape[1]]
        return float((ours[:, : theirs.shape[1]] - theirs).abs().nan_to_num(nan=float("inf")).max())

    def forward(iterator: Iterator[Any], model: Any) -> tuple[Any, Any]:
        item = next(iterator)
        params = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=item.cu_seqlens,
            cu_seqlens_kv=item.cu_seqlens,
            max_seqlen_q=item.max_seqlen,
            max_seqlen_kv=item.max_seqlen,
        )
        return model(item.tokens, item.position_ids, None, packed_seq_params=params), compare

    # the interleaved schedule asks for a micro-batch for every pipeline stage
    count = layout.pipeline_model_parallel_size if len(models) > 1 else 1
    iterators = [iter([batch] * count) for _ in models]
    with torch.no_grad():
        found = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if len(models) > 1 else iterators[0],
            model=models if len(models) > 1 else models[0],
            num_microbatches=count,
            seq_length=whole.length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return found[0] if found else 0.0


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
