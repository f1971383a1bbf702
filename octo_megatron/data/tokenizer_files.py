"""Every form a tokenizer comes in -> a Hugging Face folder with tokenizer.json, which everything else reads.

    a folder with tokenizer.json       as it is
    tokenizer.json                     needs --eos where no tokenizer_config.json lies beside it
    tokenizer.model, tiktoken format   Llama-3's: a line `base64 rank` for each of 128,000 byte strings
    *.model, SentencePiece             BPE or unigram: a protocol buffer

The conversion is a function of the file's bytes, so its fingerprint is too. The tests compare the ids with those
of tiktoken and of sentencepiece themselves.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json, write_text

_LLAMA3_RANKS, _LLAMA3_SPECIAL = 128_000, 256
_LLAMA3_NAMED = (
    "begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
    "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag",
    "image",
)  # fmt: skip
"""Special tokens of Llama 3.1 to 3.3 in the order of their ids; the rest is reserved."""
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of SentencePiece pieces."""


def tokenizer_folder(path: Path, into: Path, eos: str | None = None) -> Path:
    """A Hugging Face folder for `path`: itself, or `into`, which is written where it is not there already.

    Raises:
        UserError: there is no tokenizer at `path`, it is damaged, or no end-of-document token is known.
    """
    origin = origin_file(path)
    if path.is_dir() and origin.name == "tokenizer.json" and eos is None:
        return path
    for name, text in _files(origin, eos).items():
        target = into / name
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            write_text(target, text)
    return into


def origin_file(path: Path) -> Path:
    """The one file that decides which tokenizer a path names.

    Raises:
        UserError: there is none.
    """
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"{path} holds neither tokenizer.json nor tokenizer.model: give a Hugging Face tokenizer folder"
        )
    if not path.is_file():
        raise UserError(
            f"no tokenizer at {path}: give a Hugging Face folder, a tokenizer.json or a tokenizer.model"
        )
    return path


def _files(path: Path, eos: str | None) -> dict[str, str]:
    """Name -> content of the two files of the folder."""
    raw = path.read_bytes()
    if path.name.endswith(".json"):
        beside = path.with_name("tokenizer_config.json")
        config: dict[str, Any] = dict(read_json(beside)) if beside.is_file() else {}
        text = raw.decode()
    else:
        ranks = _tiktoken_ranks(raw)
        made, config = _from_sentencepiece(path, raw) if ranks is None else _from_tiktoken(path, ranks)
        text = made.to_str(pretty=True)
    if eos is not None:
        config["eos_token"] = eos
    if config.get("eos_token") is None:
        raise UserError(f"{path} does not say which token ends a document: give it with --eos TOKEN")
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    return {
        "tokenizer.json": text,
        "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True) + "\n",
    }


def _tiktoken_ranks(raw: bytes) -> dict[bytes, int] | None:
    """Byte string -> rank; None where the file is of another format."""
    ranks: dict[bytes, int] = {}
    try:
        for line in raw.split(b"\n"):
            if line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        return None
    return ranks or None


def _from_tiktoken(path: Path, ranks: dict[bytes, int]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    if len(ranks) != _LLAMA3_RANKS:
        raise UserError(
            f"{path} has {len(ranks)} ranks where Llama-3's has {_LLAMA3_RANKS}: the file does not say how text is "
            "split or which special tokens there are; give the tokenizer.json of this model"
        )
    letters = _byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        inside = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        inside.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelled[left], spelled[right]) for left, right in inside]
    model = models.BPE({spelled[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=True)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    reserved = (f"reserved_special_token_{i + 2}" for i in range(_LLAMA3_SPECIAL - len(_LLAMA3_NAMED)))
    names = [f"<|{name}|>" for name in (*_LLAMA3_NAMED, *reserved)]
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    _put_before(made, names[0])
    return made, {"bos_token": names[0], "eos_token": names[1]}


def _put_before(made: tokenizers.Tokenizer, bos: str) -> None:
    """Have every text begin with this token."""
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
    )


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, which byte-level vocabularies are written in."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _from_sentencepiece(path: Path, raw: bytes) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    try:
        model = list(_fields(raw))
        pieces = [dict(_fields(value)) for number, value in model if number == 1]
        trainer = dict(_fields(next((value for number, value in model if number == 2), b"")))
        rules = dict(_fields(next((value for number, value in model if number == 3), b"")))
        names = [bytes(piece[1]).decode() for piece in pieces]
        scores = [struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0] for piece in pieces]
    except (ValueError, IndexError, KeyError, TypeError, struct.error):
        pieces = []
    if not pieces:
        raise UserError(f"{path} is neither Llama-3's tiktoken file nor a SentencePiece model")
    kinds = [piece.get(3, _NORMAL) for piece in pieces]
    if trainer.get(24):
        raise UserError(
            f"{path} puts white space after words (treat_whitespace_as_suffix), which is not supported"
        )
    kind, fallback = trainer.get(3, 1), bool(trainer.get(35, 0))
    unknown = kinds.index(_UNKNOWN)
    if kind == 1:
        scored = _unreachable(path, names, scores, kinds)
        made = tokenizers.Tokenizer(models.Unigram(scored, unknown, fallback))
    elif kind == 2:
        vocabulary = {name: number for number, name in enumerate(names)}
        merges = _merges(names, scores, kinds)
        made = tokenizers.Tokenizer(
            models.BPE(vocabulary, merges, unk_token=names[unknown], fuse_unk=True, byte_fallback=fallback)
        )
    else:
        raise UserError(
            f"{path} is a SentencePiece model of words or characters; BPE and unigram are supported"
        )
    made.normalizer = _normalizer(rules)
    inner = [
        name
        for name, one in zip(names, kinds, strict=True)
        if one in (_NORMAL, _USER) and "▁" in name.lstrip("▁")
    ]
    if not inner:  # no piece goes on after a word, so words can be taken one by one, which is faster
        made.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+|▁+"), "isolated")
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if rules.get(3, 1) else steps)
    special = [name for name, one in zip(names, kinds, strict=True) if one in (_CONTROL, _UNKNOWN)]
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    user = [name for name, one in zip(names, kinds, strict=True) if one == _USER]
    made.add_tokens([AddedToken(name, normalized=False, special=False) for name in user])
    config: dict[str, Any] = {"unk_token": names[unknown]}
    for key, number, default in (("bos_token", 41, 1), ("eos_token", 42, 2)):
        token = trainer.get(number, default)
        if token < len(names) and kinds[token] == _CONTROL:
            config[key] = names[token]
    if "bos_token" in config:
        _put_before(made, config["bos_token"])
    return made, config


def _unreachable(
    path: Path, names: list[str], scores: list[float], kinds: list[int]
) -> list[tuple[str, float]]:
    """The unigram vocabulary with scores at which no text is ever cut into a control or byte piece.

    SentencePiece does not match those against text; this library does, and a text that spells `</s>` would end
    itself. Their letters one by one must cost less, so each must be a piece.
    """
    usable = {name for name, kind in zip(names, kinds, strict=True) if kind in (_NORMAL, _USER)}
    reserved = {name for name, kind in zip(names, kinds, strict=True) if kind in (_CONTROL, _UNKNOWN, _BYTE)}
    tokens = (name for name, kind in zip(names, kinds, strict=True) if kind in (_CONTROL, _UNKNOWN))
    lost = sorted({letter for name in tokens for letter in name} - usable)
    if lost:
        raise UserError(
            f"{path}: the letters {' '.join(lost)} of its own special tokens are no pieces of it, so text that "
            "spells one cannot be told from the token; train it with these letters, or give a tokenizer.json"
        )
    lowest = min(score for name, score in zip(names, scores, strict=True) if name in usable)
    floor = min(lowest, 0.0) * 2 * max(map(len, reserved)) - 1000
    return [(name, floor if name in reserved else score) for name, score in zip(names, scores, strict=True)]


def _merges(names: list[str], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """Pairs that join to a piece, best score first, as SentencePiece's BPE takes them."""
    usable = {name for name, kind in zip(names, kinds, strict=True) if kind in (_NORMAL, _USER, _UNUSED)}
    place = {name: number for number, name in enumerate(names)}
    merges = []
    for _, name in sorted(zip(scores, names, strict=True), key=lambda one: (-one[0], place[one[1]])):
        if name in usable:
            pairs = [(name[:i], name[i:]) for i in range(1, len(name))]
            inside = [pair for pair in pairs if pair[0] in usable and pair[1] in usable]
            merges += sorted(inside, key=lambda pair: (place[pair[0]], place[pair[1]]))
    return merges


def _normalizer(rules: Mapping[int, Any]) -> Any:
    """What SentencePiece does to a text before it cuts it."""
    steps: list[Any] = []
    if rules.get(2):
        steps.append(normalizers.Precompiled(bytes(rules[2])))
    if rules.get(4, 1):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.get(3, 1):
        steps.append(normalizers.Prepend(" "))
    steps.append(normalizers.Replace(" ", "▁"))
    return normalizers.Sequence(steps)


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol buffer message: int, or bytes for all that is longer."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield tag >> 3, value - (1 << 64) if value >> 63 else value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(raw):
            raise ValueError("cut short")
        yield tag >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
