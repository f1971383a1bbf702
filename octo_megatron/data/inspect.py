"""What was in the batch of a step: `python -m octo_megatron.data.inspect RUN --step N`, behind `octo inspect`.

Nothing was recorded for it: the samples of a step follow from its number. With a mixture file instead of a run folder
it shows `shares.py`'s table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import load_lineage
from octo_megatron.config.run_folder import RunFolder
from octo_megatron.config.schema import LineageConfig, TrainNode
from octo_megatron.data.mixture import Mixture, node_seed, open_mixture
from octo_megatron.data.sample import PADDING
from octo_megatron.data.shares import show_mixture
from octo_megatron.data.tokenizer import TextTokenizer

_SHOWN_CHARACTERS = 160


def describe_step(run: RunFolder, lineage: LineageConfig, name: str, step: int, full: bool) -> Iterator[str]:
    """Lines about the batch of step `step` (from 1, as in metrics.jsonl) of train node `name`.

    Raises:
        UserError: the node has no such step, or its data are not there.
    """
    node = lineage.nodes[name]
    assert isinstance(node, TrainNode)
    if not 1 <= step <= node.steps:
        raise UserError(f"node {name} has steps 1 to {node.steps}, not {step}")
    seed = node_seed(lineage.seed, name)
    mixture = open_mixture(run, node.mixture, node.seq_length, seed, node.packing, node.max_epochs)
    tokenizer = TextTokenizer(run.tokenizer)
    first = (step - 1) * node.global_batch_size
    fill = ", ".join(f"{source} {share:.1%} full" for source, share in mixture.fill().items())
    yield (
        f"node {name}, step {step} of {node.steps}: samples {first} to {first + node.global_batch_size - 1} "
        f"of {node.seq_length} tokens, packing {node.packing} ({fill})"
    )
    for position in range(first, first + node.global_batch_size):
        yield from _describe_sample(mixture, position, tokenizer, full)


def _describe_sample(mixture: Mixture, position: int, tokenizer: TextTokenizer, full: bool) -> Iterator[str]:
    sample, place = mixture.sample(position), mixture.place(position)
    tokens = mixture.sets[place.source]
    yield (
        f"sample {position}: source {place.source}, epoch {place.epoch}, place {place.place} of "
        f"{place.samples}, {sample.real_tokens} tokens, {int(sample.loss_mask.sum())} of them in the loss"
    )
    for i, (a, b) in enumerate(pairwise(sample.cu_seqlens.tolist())):
        document, offset = int(sample.documents[i]), int(sample.offsets[i])
        if document == PADDING:
            yield f"  {b - a} places of padding"
            continue
        known = tokens.document_id(document)
        whole = tokens.span(document)[1]
        called = f"document {document}" + (f" ({known})" if known is not None else "")
        yield f"  {called}, tokens {offset} to {offset + b - a - 1} of {whole}:"
        text = tokenizer.decode(sample.tokens[a:b].tolist())
        yield from (f"    {line}" for line in (text.split("\n") if full else [_beginning(text)]))


def _beginning(text: str) -> str:
    """The first characters on one line, with line breaks and the like written out."""
    shown = text[:_SHOWN_CHARACTERS].encode("unicode_escape").decode().replace("\\\\", "\\")
    return shown if len(text) <= _SHOWN_CHARACTERS else f"{shown} ... ({len(text)} characters)"


def main(arguments: list[str]) -> int:
    """Exit code: 0 shown, 2 a user's mistake (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="octo inspect")
    parser.add_argument("target", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--step", type=int)
    parser.add_argument("--node")
    parser.add_argument("--full", action="store_true")
    asked = parser.parse_args(arguments)
    try:
        if asked.target.is_dir():
            run, lineage = _load(asked.target)
            if asked.step is None:
                raise UserError("which step? say --step N, as metrics.jsonl counts them")
            for line in describe_step(run, lineage, _node(lineage, asked.node), asked.step, asked.full):
                print(line)
            return 0
        return show_mixture(asked.target, asked.overrides)
    except UserError as error:
        print(f"octo: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head`
        return 0


def _load(root: Path) -> tuple[RunFolder, LineageConfig]:
    run = RunFolder(root)
    if not run.lineage_file.is_file():
        raise UserError(f"{root} is no run folder: it has no lineage.yaml")
    return run, load_lineage(run.lineage_file)


def _node(lineage: LineageConfig, asked: str | None) -> str:
    known = [name for name, node in lineage.nodes.items() if isinstance(node, TrainNode)]
    if asked is None and len(known) == 1:
        return known[0]
    if asked not in known:
        what = "which node? say --node NODE" if asked is None else f"there is no train node '{asked}'"
        raise UserError(f"{what}; train nodes: {', '.join(known) or 'none'}")
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
