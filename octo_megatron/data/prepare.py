"""Everything a run needs before its first node: `python -m octo_megatron.data.prepare RUN`.

Writes RUN/tokenizer, RUN/hf_config.json, RUN/data/<source>/ and RUN/problems/<set>.jsonl for the sources and
problem sets that some node uses. What is there and made from the same things is left alone; a kill leaves
nothing half made, and the next call ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, load_lineage, to_plain
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.run_folder import Progress, RunFolder, read_json, write_json, write_text
from octo_megatron.config.schema import EvaluateNode, LineageConfig, RLNode, TrainNode
from octo_megatron.data import builtin
from octo_megatron.data.problems import dump_problems, make_problems
from octo_megatron.data.sources import prepare_source, source_set
from octo_megatron.data.tokenizer import TextTokenizer, file_sha256
from octo_megatron.data.tokenizer_files import origin_file, tokenizer_folder
from octo_megatron.data.whole import WholePacking

_TOKENIZER_SEED = 0
"""Runs of different seeds share the built-in tokenizer, so that their weights and losses can be compared."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def prepare(run: RunFolder, lineage: LineageConfig) -> None:
    """Make what is missing.

    Raises:
        UserError: a file, row, tokenizer or model config does not fit; says which and what to change.
    """
    progress = Progress(run.root / "data" / "progress.json")
    hf_config = read_hf_config(lineage.model)
    progress.update("tokenizer", 0, 1)
    _prepare_tokenizer(run, lineage, hf_config)
    tokenizer = TextTokenizer(run.tokenizer)
    _prepare_hf_config(run, hf_config, tokenizer)
    for name, least_tokens in _needed_sources(lineage).items():

        def report(done: int, total: int, phase: str = f"tokens of {name}") -> None:
            progress.update(
                phase, done, max(total, done + 1)
            )  # not known or not reached: never "all done" here

        prepare_source(
            run.source(name), name, lineage.sources[name], tokenizer, lineage.seed, least_tokens, report
        )
    for name, seq_length in _packed_whole(lineage):

        def packed(done: int, total: int, phase: str = f"packing {name} at {seq_length}") -> None:
            progress.update(phase, done, total)

        whole = WholePacking(source_set(run.source(name)), seq_length, name, packed)
        print(f"{name}: {whole.samples} samples of {seq_length}, {whole.fill:.2%} full", flush=True)
    for name in _needed_problems(lineage):
        progress.update(f"problems of {name}", 0, 1)
        _prepare_problems(run, name, lineage)
    progress.update("data ready", 1, 1)


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 a user's mistake (one line on stderr)."""
    if len(arguments) != 1:
        print("usage: python -m octo_megatron.data.prepare RUN", file=sys.stderr)
        return 2
    try:
        run = RunFolder(Path(arguments[0]))
        prepare(run, load_lineage(run.lineage_file))
    except UserError as error:
        print(f"octo: error: {error}", file=sys.stderr)
        return 2
    return 0


def _needed_sources(lineage: LineageConfig) -> dict[str, int]:
    """Source -> tokens of the longest window that a node takes from it."""
    needed: dict[str, int] = {}
    for node_name, node in lineage.nodes.items():
        for name in node.mixture if isinstance(node, TrainNode) else ():
            if name not in lineage.sources:
                raise UserError(
                    f"nodes.{node_name}.mixture names source '{name}'; known: {', '.join(lineage.sources)}"
                )
            assert isinstance(node, TrainNode)
            needed[name] = max(needed.get(name, 0), node.seq_length + 1)
    return needed


def _packed_whole(lineage: LineageConfig) -> list[tuple[str, int]]:
    """(source, sequence length) of every table that nodes with `packing: whole` open."""
    pairs = {
        (name, node.seq_length): None
        for node in lineage.nodes.values()
        if isinstance(node, TrainNode) and node.packing == "whole"
        for name in node.mixture
    }
    return list(pairs)


def _needed_problems(lineage: LineageConfig) -> list[str]:
    needed: dict[str, None] = {}
    for node_name, node in lineage.nodes.items():
        names: list[str] = []
        if isinstance(node, RLNode):
            names = [node.problems, *node.evaluate]
        elif isinstance(node, EvaluateNode):
            names = node.problems
        for name in names:
            if name not in lineage.problems:
                raise UserError(
                    f"nodes.{node_name} names problem set '{name}'; there are: {', '.join(lineage.problems)}"
                )
            needed[name] = None
    return list(needed)


def _prepare_tokenizer(run: RunFolder, lineage: LineageConfig, hf_config: dict[str, Any]) -> None:
    """Fill RUN/tokenizer; the note beside it says what it was made from."""
    note = run.root / "data" / "tokenizer.json"
    origin = Path(lineage.model if lineage.tokenizer == "model" else lineage.tokenizer)
    if lineage.tokenizer == "builtin":
        wanted = {"tokenizer": "builtin", "vocab_size": hf_config["vocab_size"], "seed": _TOKENIZER_SEED}
    else:
        if not origin.is_dir() and (lineage.tokenizer == "model" or not origin.is_file()):
            what = "model" if lineage.tokenizer == "model" else "tokenizer"
            raise UserError(f"{what}: no folder at '{origin}' to take the tokenizer from")
        wanted = {"tokenizer": str(origin), "origin_sha256": file_sha256(origin_file(origin))}
    if note.is_file() and read_json(note) == wanted | {"files": _digests(run.tokenizer)}:
        return
    temporary = run.tokenizer.with_name(".tokenizer.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        if lineage.tokenizer == "builtin":
            builtin.save_tokenizer(
                builtin.train_tokenizer(_TOKENIZER_SEED, hf_config["vocab_size"]), temporary
            )
        elif tokenizer_folder(origin, temporary) != temporary:
            for name in _TOKENIZER_FILES:
                if (origin / name).is_file():
                    shutil.copyfile(origin / name, temporary / name)
        TextTokenizer(temporary)  # refuse it before anything is made with it
        shutil.rmtree(run.tokenizer, ignore_errors=True)
        temporary.rename(run.tokenizer)
    except OSError as error:
        raise UserError(
            f"cannot write {run.tokenizer}: {error.strerror or error}; free some space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_json(note, wanted | {"files": _digests(run.tokenizer)})


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of each tokenizer file that is there."""
    paths = [folder / name for name in _TOKENIZER_FILES]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def _prepare_hf_config(run: RunFolder, hf_config: dict[str, Any], tokenizer: TextTokenizer) -> None:
    """The model's config with the ids that end and begin a text; these must be the tokenizer's."""
    if hf_config["vocab_size"] < tokenizer.size:
        raise UserError(
            f"model: vocab_size {hf_config['vocab_size']} is smaller than the tokenizer in "
            f"{tokenizer.folder}, which has ids up to {tokenizer.size - 1}: "
            "choose a tokenizer that belongs to the model"
        )
    config = dict(hf_config)
    if config.get("eos_token_id") is None:
        config["eos_token_id"] = tokenizer.eos_id
    if config.get("bos_token_id") is None and tokenizer.bos_id is not None:
        config["bos_token_id"] = tokenizer.bos_id
    ends = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    if tokenizer.eos_id not in ends:
        raise UserError(
            f"model: eos_token_id {config['eos_token_id']} of the config is not the tokenizer's "
            f"end-of-sequence id {tokenizer.eos_id}: answers would not end where documents do; "
            "make config.json and tokenizer_config.json agree"
        )
    if not run.hf_config.is_file() or read_json(run.hf_config) != config:
        write_json(run.hf_config, config)


def _prepare_problems(run: RunFolder, name: str, lineage: LineageConfig) -> None:
    config, path = lineage.problems[name], run.problems(name)
    manifest = path.with_suffix(".manifest.json")
    seed = lineage.seed if config.builtin else None
    stat = Path(config.file).stat() if config.file and Path(config.file).is_file() else None
    wanted = {
        "problems": name,
        "config_digest": digest([to_plain(config), seed]),
        "input": [config.file, stat.st_size, stat.st_mtime_ns] if stat else None,
    }
    if path.is_file() and manifest.is_file():
        made = wanted | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if made.items() <= read_json(manifest).items():
            return
    problems = make_problems(name, config, lineage.seed)
    text = dump_problems(problems)
    write_text(path, text)
    write_json(
        manifest, wanted | {"count": len(problems), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
