"""Part 4: everything beside the numbers: config, tokenizer, chat template, generation config, tie flag, vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from octo_megatron.config.errors import reading
from octo_megatron.config.run_folder import read_json
from octo_megatron.convert.gate.result import GateError
from octo_megatron.model.families import EMBEDDING, HEAD, family_of
from octo_megatron.model.hf_folder import INDEX, HfFolder
from octo_megatron.model.slots import check_names, tensor_shapes

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What stands beside the weights and goes along unchanged, byte by byte."""
_TYPE_FIELDS = ("dtype", "torch_dtype")
_CHAT = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "How many legs has a spider?"},
    {"role": "assistant", "content": "Eight."},
    {"role": "user", "content": "And an ant?"},
]


def companions_of(sources: Sequence[Path]) -> dict[str, Path]:
    """Companion file -> where it is, in the first of the folders that has it."""
    found = {}
    for name in COMPANIONS:
        for source in sources:
            if (source / name).is_file():
                found[name] = source / name
                break
    return found


def copy_companions(sources: Sequence[Path], target: Path) -> None:
    """Copy `companions_of` the folders into another one. Raises UserError when one cannot be read."""
    for name, file in companions_of(sources).items():
        with reading(file):
            data = file.read_bytes()
        (target / name).write_bytes(data)


def check(
    folder: HfFolder, hf_config: dict[str, Any], originals: Sequence[Path]
) -> tuple[str, dict[str, Any]]:
    """Compare the folder's small files with the checkpoint's config and the original files.

    Args:
        hf_config: the config that the checkpoint was made with.
        originals: folders with the tokenizer and other files as they came, first match wins.

    Raises:
        GateError: the first field, file, tensor or template that differs.
    """
    fields = _config(folder, hf_config)
    _tensors(folder, hf_config)
    files = _companions(folder.path, companions_of(originals))
    lines = [
        f"{fields} fields of config.json",
        f"{len(files)} files byte by byte ({', '.join(files) or 'none'})",
    ]
    lines.append(_chat_template(folder.path, companions_of(originals)))
    if "generation_config.json" in files:
        GenerationConfig.from_pretrained(folder.path, local_files_only=True)
    shape = family_of(hf_config).shape(hf_config)
    lines.append(f"{'tied' if shape.tied else 'own'} head, {shape.vocab_size} rows of vocabulary")
    return "; ".join(lines), {"config_fields": fields, "files": files}


def _config(folder: HfFolder, expected: dict[str, Any]) -> int:
    found = read_json(folder.path / "config.json")
    stored = {folder.stored(name).dtype for name in folder.names}
    for key in sorted(found.keys() | expected.keys()):
        if key in _TYPE_FIELDS:
            continue
        if key not in found:
            raise GateError(f"config.json of {folder.path} lacks {key}={expected[key]!r}")
        if key not in expected:
            raise GateError(
                f"config.json of {folder.path} has {key}={found[key]!r}, which the checkpoint's has not"
            )
        if json.dumps(found[key], sort_keys=True) != json.dumps(expected[key], sort_keys=True):
            raise GateError(
                f"config.json of {folder.path}: {key} is {found[key]!r}, the checkpoint's is {expected[key]!r}"
            )
    said = [found[key] for key in _TYPE_FIELDS if key in found]
    actual = [str(dtype).removeprefix("torch.") for dtype in stored]
    if said and (len(actual) > 1 or said != actual * len(said)):
        raise GateError(
            f"config.json of {folder.path} says {said[0]}, its tensors are {', '.join(sorted(actual))}"
        )
    return len(found)


def _tensors(folder: HfFolder, hf_config: dict[str, Any]) -> None:
    """Names and shapes, and with them the tie flag and the rows of the vocabulary."""
    shape = family_of(hf_config).shape(hf_config)
    embedding, head = EMBEDDING.hf[0], HEAD.hf[0]
    if shape.tied and head in folder.names and not torch.equal(folder.read(head), folder.read(embedding)):
        raise GateError(
            f"config.json of {folder.path} ties the head to the embedding, but {head} is there and differs from it"
        )
    check_names(folder.names, hf_config, str(folder.path))
    for name, expected in tensor_shapes(hf_config).items():
        found = folder.stored(name).shape
        if found != expected:
            leaked = name in (embedding, head) and found[0] > expected[0]
            raise GateError(
                f"tensor {name} of {folder.path} has shape {list(found)} instead of {list(expected)}"
                + (f": {found[0] - expected[0]} rows of vocabulary padding have leaked" if leaked else "")
            )
    if (folder.path / INDEX).is_file():
        total = read_json(folder.path / INDEX).get("metadata", {}).get("total_size")
        actual = sum(torch.Size(s).numel() for s in tensor_shapes(hf_config).values())
        actual *= folder.stored(embedding).dtype.itemsize
        if total not in (None, actual):
            raise GateError(f"{folder.path / INDEX} says {total} bytes, the tensors have {actual}")


def _companions(folder: Path, originals: dict[str, Path]) -> list[str]:
    for name, original in originals.items():
        if not (folder / name).is_file():
            raise GateError(f"{folder / name} is missing; {original} has it")
        before, after = original.read_bytes(), (folder / name).read_bytes()
        if before != after:
            differing = (i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1])
            where = next(differing, min(len(before), len(after)))
            raise GateError(f"{folder / name} differs from {original} at byte {where}")
    for name in COMPANIONS:
        if (folder / name).is_file() and name not in originals:
            raise GateError(f"{folder / name} was not among the original files")
    return list(originals)


def _chat_template(folder: Path, originals: dict[str, Path]) -> str:
    """The rendered conversation is the same; only where the tokenizer loads and has a template."""
    if "tokenizer_config.json" not in originals or "tokenizer.json" not in originals:
        return "no tokenizer to render a chat with"
    source = originals["tokenizer_config.json"].parent
    before = AutoTokenizer.from_pretrained(source, local_files_only=True)
    if not before.chat_template:
        return "no chat template"
    after = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = []
    for tokenizer in (before, after):
        try:
            texts.append(tokenizer.apply_chat_template(_CHAT, tokenize=False, add_generation_prompt=True))
        except Exception:  # a template may refuse a system message
            texts.append(tokenizer.apply_chat_template(_CHAT[1:], tokenize=False, add_generation_prompt=True))
    if texts[0] != texts[1]:
        raise GateError(f"the chat template of {folder} renders another text than that of {source}")
    return "chat template renders the same"
