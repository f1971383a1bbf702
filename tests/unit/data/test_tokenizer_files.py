"""Tokenizers in every form: the ids are those of the libraries that the files come from."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenise_here import tokenise_here, write_rows

from octo_megatron.config.errors import UserError
from octo_megatron.data import tokenizer_files
from octo_megatron.data.token_set import TokenisedSet
from octo_megatron.data.tokenizer import TextTokenizer

ODD = [
    " ", "a  b   c ", "  x", "Grüße  日本語 \U0001f600 \t tab\n\nnew\r\nline", "1234567 3.14", "don't I'LL we've",
    "<|eot_id|> </s> <s> <unk>", "</s>", "x<0x41>y", "\u00a0no \u2028 break", "🙂🙂a", "ﬁ ½ Å e\u0301",
    "\\frac{a}{b}^2_n",
]  # fmt: skip


def _texts() -> list[str]:
    rng = random.Random(0)
    words = [
        "the",
        "cat",
        "Let",
        "$x^2+y^2$",
        "be",
        "Lemma",
        "of",
        "(1.5)",
        "é",
        "then,",
        "\\alpha",
        "group",
        "A",
    ]
    return [
        " ".join(rng.choices(words, k=rng.randint(1, 60))) + rng.choice([".", "\n", "!\n\n "])
        for _ in range(200)
    ]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the file, the folder made of it)."""
    package = pytest.importorskip(
        "llama_models",
        reason="Llama-3's tokenizer is missing: pip install --no-deps -r requirements/real-weights.lock",
    )
    path = Path(package.__path__[0]) / "llama3" / "tokenizer.model"
    return path, tokenizer_files.tokenizer_folder(path, tmp_path_factory.mktemp("llama3"))


def test_llama3_gives_tiktokens_ids(llama3: tuple[Path, Path]) -> None:
    pytest.importorskip("tiktoken", reason="pip install --no-deps -r requirements/real-weights.lock")
    from llama_models.llama3.tokenizer import Tokenizer

    theirs, ours = Tokenizer(llama3[0]), TextTokenizer(llama3[1])
    assert (ours.eos_id, ours.bos_id, ours.prefix) == (theirs.eos_id, theirs.bos_id, [theirs.bos_id])
    assert ours.size == theirs.n_words == 128_256
    for text in [*ODD, *_texts()]:
        assert ours.encode(text) == theirs.encode(text, bos=True, eos=False)
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode_documents(["a"]) == [theirs.encode("a", bos=True, eos=True)]


def test_llama3_on_real_text(llama3: tuple[Path, Path], real_data: Path) -> None:
    pytest.importorskip("tiktoken", reason="pip install --no-deps -r requirements/real-weights.lock")
    from llama_models.llama3.tokenizer import Tokenizer

    theirs, ours = Tokenizer(llama3[0]), TextTokenizer(llama3[1])
    rows = (real_data / "train/gsm8k.jsonl").read_text().splitlines()[:1000]
    texts = ["{question}\n{answer}".format(**json.loads(row)) for row in rows]
    assert ours.encode_documents(texts) == [theirs.encode(text, bos=True, eos=True) for text in texts]


@pytest.fixture
def sentencepiece_model(tmp_path: Path) -> Callable[..., Path]:
    """Train a small one: model(type, **options)."""
    library = pytest.importorskip(
        "sentencepiece", reason="sentencepiece is missing: pip install --no-deps -r requirements/dev.lock"
    )
    letters = "a < b > c / d | <unk> </s> <0xAF> 0123456789 ABCDEF abcdefghijklmnopqrstuvwxyz"
    (tmp_path / "corpus.txt").write_text(
        "\n".join([letters] * 40 + [line for t in _texts() for line in t.split("\n")])
    )

    def train(kind: str, **options: object) -> Path:
        library.SentencePieceTrainer.train(
            input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / kind), vocab_size=400,
            model_type=kind, minloglevel=2, hard_vocab_limit=False, **options,
        )  # fmt: skip
        return tmp_path / f"{kind}.model"

    return train


LLAMA2 = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "options",
    [{}, LLAMA2, {"byte_fallback": True}, {"add_dummy_prefix": False}, {"split_by_whitespace": False}],
    ids=["plain", "llama2", "bytes", "no prefix", "across words"],
)
def test_sentencepiece_gives_its_own_ids(
    kind: str, options: dict, sentencepiece_model: Callable[..., Path], tmp_path: Path
) -> None:
    import sentencepiece

    path = sentencepiece_model(kind, **options)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = TextTokenizer(tokenizer_files.tokenizer_folder(path, tmp_path / "made"))
    assert (ours.eos_id, ours.bos_id, ours.size) == (theirs.eos_id(), theirs.bos_id(), theirs.vocab_size())
    texts = [*ODD, *_texts()]
    different = [text for text in texts if ours.encode(text) != [theirs.bos_id(), *theirs.encode(text)]]
    # two best cuts of the same score: sentencepiece adds scores in 32 bits, this library in 64
    assert len(different) <= (0 if kind == "bpe" else 2), different
    for text in different:
        score = [sum(map(theirs.get_score, ids)) for ids in (ours.encode(text)[1:], theirs.encode(text))]
        assert score[0] == pytest.approx(score[1], rel=1e-5)
    assert all(ours.eos_id not in ours.encode(text) for text in texts)
    if options == LLAMA2:
        assert all(ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) for text in texts)


def test_files_and_folders(tokenizer_folder: Path, tmp_path: Path) -> None:
    folder_of = tokenizer_files.tokenizer_folder
    assert (
        folder_of(tokenizer_folder, tmp_path / "made") == tokenizer_folder
        and not (tmp_path / "made").exists()
    )
    made = folder_of(tokenizer_folder / "tokenizer.json", tmp_path / "made")
    assert TextTokenizer(made).sha256 == TextTokenizer(tokenizer_folder).sha256
    other = TextTokenizer(folder_of(tokenizer_folder, tmp_path / "other", eos="<bos>"))
    assert (other.eos_id, other.sha256) == (1, TextTokenizer(tokenizer_folder).sha256)
    shutil.copy(tokenizer_folder / "tokenizer.json", tmp_path)
    with pytest.raises(
        UserError, match=r"does not say which token ends a document: give it with --eos TOKEN"
    ):
        folder_of(tmp_path / "tokenizer.json", tmp_path / "made")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.model").write_bytes(b"\xff\x00 no tokenizer")
    (tmp_path / "few.model").write_text("YQ== 0\nYg== 1\n")
    for path, cause in (
        (tmp_path / "empty", "holds neither tokenizer.json nor tokenizer.model"),
        (tmp_path / "nowhere", "no tokenizer at"),
        (tmp_path / "x.model", "neither Llama-3's tiktoken file nor a SentencePiece model"),
        (tmp_path / "few.model", "has 2 ranks where Llama-3's has 128000"),
    ):
        with pytest.raises(UserError, match=cause):
            folder_of(path, tmp_path / "made")


def test_a_set_made_with_a_model_file_carries_its_folder(
    sentencepiece_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = sentencepiece_model("bpe", **LLAMA2)
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in _texts()])
    tokenise_here([tmp_path / "a.jsonl"], tmp_path / "set", path)
    made, tokenizer = TokenisedSet(tmp_path / "set"), TextTokenizer(tmp_path / "set" / "tokenizer")
    made.check_tokenizer(tokenizer.sha256, "its own")
    assert [made.document(i).tolist() for i in range(made.documents)] == tokenizer.encode_documents(_texts())
    again = tokenise_here([tmp_path / "a.jsonl"], tmp_path / "set", path)
    assert again.was_there
