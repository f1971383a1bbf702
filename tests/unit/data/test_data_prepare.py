"""Preparing a run: what is written, that it is the same however it came about, and what a mistake says."""

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import to_plain
from octo_megatron.config.run_folder import RunFolder, read_json, write_json
from octo_megatron.config.schema import LineageConfig, ProblemSetConfig, RLNode, SourceConfig, TrainNode
from octo_megatron.data.mixture import open_mixture, validation
from octo_megatron.data.prepare import main, prepare
from octo_megatron.data.problems import load_problems
from octo_megatron.data.sources import source_set
from octo_megatron.data.tokenizer import TextTokenizer

WORDS = ["the", "cat", "sat", "on", "mat", "and", "dog", "ran", "to", "house"]


def _documents(count: int) -> list[str]:
    """Short texts, many of them more than once."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]


@pytest.fixture
def make(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., tuple[RunFolder, LineageConfig]]:
    """make(documents, **fields of the source): a run folder with one node that trains on one file."""

    def made(documents: int = 2000, **source: Any) -> tuple[RunFolder, LineageConfig]:
        rows = [{"id": i, "body": text} for i, text in enumerate(_documents(documents))]
        data = tmp_path / "web.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        questions = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(20)]
        (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
        model = tmp_path / "model.yaml"
        model.write_text("architectures: [LlamaForCausalLM]\nvocab_size: 320\n")
        fields: dict[str, Any] = {"files": [str(data)], "text": "{body}", "validation_tokens": 500} | source
        lineage = LineageConfig(
            "test",
            model=str(model),
            tokenizer=str(tokenizer_folder),
            sources={"web": SourceConfig(**fields), "unused": SourceConfig(files=["nowhere.jsonl"])},
            problems={
                "rl": ProblemSetConfig(file=str(tmp_path / "qa.jsonl"), count=10),
                "unused": ProblemSetConfig(file="nowhere.jsonl"),
            },
            nodes={
                "base": TrainNode(tokens=1000, seq_length=32, mixture={"web": 1.0}),
                "rl": RLNode(parent="base", problems="rl"),
            },
        )
        run = RunFolder(tmp_path / "run")
        run.root.mkdir(exist_ok=True)
        run.lineage_file.write_text(yaml.safe_dump(to_plain(lineage)))
        return run, lineage

    return made


def _content(run: RunFolder) -> dict[str, bytes]:
    """Every file of the run but the progress, whose content is the time (and whose copy a kill may leave aside)."""
    files = sorted(
        path for path in run.root.rglob("*") if path.is_file() and "progress.json" not in path.name
    )
    return {str(path.relative_to(run.root)): path.read_bytes() for path in files}


def _texts(run: RunFolder, part: str) -> list[str]:
    tokenizer = TextTokenizer(run.tokenizer)
    store = source_set(run.source("web"), part)
    return [tokenizer.decode(store.document(i).tolist()) for i in range(store.documents)]


def test_writes_what_the_nodes_use_and_nothing_else(make: Callable) -> None:
    run, lineage = make()
    prepare(run, lineage)
    assert sorted(_content(run)) == [
        "data/tokenizer.json",
        "data/web/manifest.json",
        *(
            f"data/web/{part}/{name}"
            for part in ("train", "validation")
            for name in ("manifest.json", "shard-00000.bin", "shard-00000.idx")
        ),
        "hf_config.json",
        "lineage.yaml",
        "problems/rl.jsonl",
        "problems/rl.manifest.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ]
    assert read_json(run.hf_config) == {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 320,
        "eos_token_id": 0,
    }
    assert [problem.prompt for problem in load_problems(run.problems("rl"))] == [
        f"{i}+{i}" for i in range(10)
    ]
    manifest = read_json(run.source("web") / "manifest.json")
    store = source_set(run.source("web"))
    assert (manifest["tokens"], manifest["documents"]) == (store.tokens, store.documents)
    assert manifest["tokenizer_sha256"] == TextTokenizer(run.tokenizer).sha256
    sample = open_mixture(run, {"web": 1.0}, 32, 0).sample(0)
    assert (
        sample.tokens.shape == (33,)
        and len(validation(run, "web", 32)) == (manifest["validation_tokens"] - 1) // 32
    )


def test_held_out_documents_are_whole_and_never_in_training(make: Callable) -> None:
    run, lineage = make()
    prepare(run, lineage)
    documents, train, held_out = _documents(2000), _texts(run, "train"), _texts(run, "validation")
    assert set(documents) == set(train) | set(held_out) and not set(train) & set(held_out)
    assert train == [text for text in documents if text not in set(held_out)]
    assert len(set(held_out)) == len(held_out)
    manifest = read_json(run.source("web") / "manifest.json")
    assert 500 <= manifest["validation_tokens"] < 500 + 100


def test_stops_at_the_wanted_tokens_with_a_whole_document(make: Callable) -> None:
    run, lineage = make(tokens=3000)
    prepare(run, lineage)
    store = source_set(run.source("web"))
    assert 3000 <= store.tokens < 3000 + len(store.document(store.documents - 1))
    assert read_json(run.source("web") / "manifest.json")["validation_tokens"] >= 500


def test_again_it_touches_nothing(make: Callable) -> None:
    run, lineage = make()
    prepare(run, lineage)
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.name != "progress.json"}
    prepare(run, lineage)
    # the folder `data` itself changes with the progress file
    assert {path: path.stat().st_mtime_ns for path in before if path.name != "data"} == {
        path: time_ for path, time_ in before.items() if path.name != "data"
    }


def test_whatever_is_lost_comes_back_the_same(make: Callable) -> None:
    run, lineage = make()
    prepare(run, lineage)
    whole = _content(run)
    for name in whole:
        if name != "lineage.yaml":
            (run.root / name).unlink()
            prepare(run, lineage)
            assert _content(run) == whole, name


def test_a_changed_source_tokenizer_or_file_is_made_again(make: Callable, tmp_path: Path) -> None:
    run, lineage = make()
    prepare(run, lineage)
    first = read_json(run.source("web") / "manifest.json")["sha256"]
    prepare(run, replace(lineage, sources={"web": replace(lineage.sources["web"], text="{id} {body}")}))
    second = read_json(run.source("web") / "manifest.json")["sha256"]
    path = tmp_path / "web.jsonl"
    path.write_text(path.read_text().replace("the dog", "the hog"))
    prepare(run, lineage)
    third = read_json(run.source("web") / "manifest.json")["sha256"]
    assert len({first, second, third}) == 3


def test_killed_at_any_moment_it_ends_in_the_same_bytes(make: Callable) -> None:
    run, lineage = make(documents=20_000)
    command = [sys.executable, "-m", "octo_megatron.data.prepare", str(run.root)]
    started = time.time()
    subprocess.run(command, check=True)
    seconds = time.time() - started
    whole = _content(run)
    rng = random.Random(1)
    for name in ("data", "problems", "tokenizer"):
        subprocess.run(["rm", "-r", str(run.root / name)], check=True)
    for _ in range(4):
        process = subprocess.Popen(command)
        time.sleep(rng.uniform(0.4, 1.0) * seconds)
        process.kill()
        process.wait()
    prepare(run, lineage)
    assert _content(run) == whole


def test_a_full_disk_is_one_line_and_leaves_no_half_source(make: Callable) -> None:
    run, _ = make(documents=20_000)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "octo_megatron.data.prepare", str(run.root)]
    done = subprocess.run(command, preexec_fn=small_files, capture_output=True, text=True)
    assert done.returncode == 2 and not run.source("web").exists()
    assert done.stderr.startswith("octo: error: sources.web: cannot write") and done.stderr.count("\n") == 1


BAD_ROWS = [
    ({"text": "{text}"}, r"web\.jsonl:1: sources\.web\.text: no field \{text\}; the row has: id, body"),
    ({"files": ["gone.jsonl"]}, r"data file gone\.jsonl does not exist; .* data_root=FOLDER"),
    (
        {"validation_tokens": 10_000_000},
        r"sources\.web: \d+ tokens could be held out where validation_tokens asks",
    ),
]


@pytest.mark.parametrize(("source", "cause"), BAD_ROWS)
def test_a_source_that_does_not_fit_is_named(make: Callable, source: dict, cause: str) -> None:
    run, lineage = make(**source)
    with pytest.raises(UserError, match=cause):
        prepare(run, lineage)
    assert not run.source("web").exists()


def test_text_that_is_no_unicode_is_named_by_its_line(make: Callable, tmp_path: Path) -> None:
    run, lineage = make()
    with (tmp_path / "web.jsonl").open("a") as file:
        file.write('{"body": "a \\ud800 b"}\n')
    with pytest.raises(
        UserError,
        match=r"web\.jsonl:2001: sources\.web\.text: not valid Unicode text \(surrogates not allowed at 2\)",
    ):
        prepare(run, lineage)


def test_empty_documents_are_bad_rows(make: Callable, tmp_path: Path) -> None:
    run, lineage = make()
    text = (tmp_path / "web.jsonl").read_text()
    prepare(run, lineage)
    whole = _texts(run, "train")
    (tmp_path / "web.jsonl").write_text('{"body": ""}\n{"body": " \\n "}\n' + text)
    with pytest.raises(UserError, match=r"web\.jsonl:1: sources\.web\.text: the text is empty"):
        prepare(run, lineage)
    prepare(run, replace(lineage, sources={"web": replace(lineage.sources["web"], rejects=True)}))
    assert _texts(run, "train") == whole
    rejects = [json.loads(line) for line in (run.source("web") / "rejects.jsonl").read_text().splitlines()]
    assert [row["place"] for row in rejects] == [f"{tmp_path}/web.jsonl:{line}" for line in (1, 2)]
    assert read_json(run.source("web") / "manifest.json")["rejected"] == 2


def test_a_named_template_masks_its_prompt(make: Callable, tmp_path: Path) -> None:
    rows = [{"question": f"the cat {i}", "answer": f"the dog {i}"} for i in range(200)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"files": [str(tmp_path / "many.jsonl")], "text": "question-answer", "mask_prompt": True}
    run, lineage = make(**fields, validation_tokens=60)
    prepare(run, lineage)
    tokenizer = TextTokenizer(run.tokenizer)
    for part in ("train", "validation"):
        made = source_set(run.source("web"), part)
        assert made.masked
        for i in range(made.documents):
            text = tokenizer.decode(made.document(i).tolist()[: made.prompt_tokens(i)])
            assert text.startswith("Question: ") and text.endswith("\nAnswer:")


def test_too_little_text_is_named(make: Callable) -> None:
    run, lineage = make(documents=2, validation_tokens=0)
    nodes = {"base": TrainNode(tokens=4096, seq_length=1024, mixture={"web": 1.0})}
    with pytest.raises(
        UserError, match=r"sources\.web gave \d+ training tokens, fewer than one window of 1025"
    ):
        prepare(run, replace(lineage, nodes=nodes))


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        ("vocab_size: 200", "vocab_size 200 is smaller than the tokenizer"),
        (
            "vocab_size: 320\neos_token_id: 7",
            "eos_token_id 7 of the config is not the tokenizer's end-of-sequence id 0",
        ),
        ("vocab_size: 320\neos_token_id: [7, 0]", None),
    ],
)
def test_model_and_tokenizer_must_fit(make: Callable, tmp_path: Path, model: str, cause: str | None) -> None:
    run, lineage = make()
    (tmp_path / "model.yaml").write_text(f"architectures: [LlamaForCausalLM]\n{model}\n")
    if cause is None:
        prepare(run, lineage)
        assert read_json(run.hf_config)["eos_token_id"] == [7, 0]
        return
    with pytest.raises(UserError, match=cause):
        prepare(run, lineage)


def test_the_tokenizer_of_the_model_is_taken(make: Callable, tokenizer_folder: Path, tmp_path: Path) -> None:
    run, lineage = make()
    with pytest.raises(UserError, match=r"no folder at .* to take the tokenizer from"):
        prepare(run, replace(lineage, tokenizer="model"))
    folder = tmp_path / "hf"
    subprocess.run(["cp", "-r", str(tokenizer_folder), str(folder)], check=True)
    write_json(folder / "config.json", {"architectures": ["LlamaForCausalLM"], "vocab_size": 300})
    prepare(run, replace(lineage, tokenizer="model", model=str(folder)))
    assert (run.tokenizer / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_unknown_names_are_refused(make: Callable) -> None:
    run, lineage = make()
    with pytest.raises(UserError, match=r"nodes\.base\.mixture names source 'web'; known: other"):
        prepare(run, replace(lineage, sources={"other": lineage.sources["web"]}))
    with pytest.raises(UserError, match=r"nodes\.rl names problem set 'rl'; there are: other"):
        prepare(run, replace(lineage, problems={"other": lineage.problems["rl"]}))


def test_the_command_says_mistakes_in_one_line(
    make: Callable, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    run, _ = make()
    assert main([str(run.root)]) == 0
    assert main([str(tmp_path / "none")]) == 2 and main([]) == 2
    assert capsys.readouterr().err.startswith("octo: error: ")


def test_the_built_in_corpus(tmp_path: Path) -> None:
    def made(name: str, seed: int) -> RunFolder:
        run = RunFolder(tmp_path / name)
        prepare(
            run,
            LineageConfig(
                "tiny",
                model="model/tiny.yaml",
                seed=seed,
                sources={"general": SourceConfig(builtin="general", tokens=20_000, validation_tokens=1000)},
                problems={"rl": ProblemSetConfig(builtin="rl", count=20)},
                nodes={
                    "base": TrainNode(tokens=1000, mixture={"general": 1.0}),
                    "rl": RLNode(parent="base"),
                },
            ),
        )
        return run

    first, again, other = made("first", 0), made("again", 0), made("other", 1)
    assert _content(first) == _content(again)
    assert (first.tokenizer / "tokenizer.json").read_bytes() == (
        other.tokenizer / "tokenizer.json"
    ).read_bytes()
    assert (
        _content(first)["data/general/train/shard-00000.bin"]
        != _content(other)["data/general/train/shard-00000.bin"]
    )
    assert len(load_problems(first.problems("rl"))) == 20
    assert np.isin(0, open_mixture(first, {"general": 1.0}, 128, 0).sample(0).tokens)


def test_real_text(real_data: Path, make: Callable) -> None:
    run, lineage = make(
        files=[str(real_data / "train/math.parquet"), str(real_data / "train/tex_math.jsonl.zst")],
        text="{text}",
    )
    with pytest.raises(
        UserError, match=r"math\.parquet:row 1: .* the row has: level, type, data_source, prompt"
    ):
        prepare(run, lineage)
    solution = "Question: {prompt[0][content]}\nAnswer: {reward_model[ground_truth][solution]}"
    sources = {
        "tex": SourceConfig(
            files=[str(real_data / "train/tex_math.jsonl.zst")], tokens=30_000, validation_tokens=2000
        ),
        "math": SourceConfig(files=[str(real_data / "train/math.parquet")], text=solution, tokens=30_000),
    }
    nodes = {"base": TrainNode(tokens=10_000, mixture={"tex": 0.3, "math": 0.7})}
    prepare(run, replace(lineage, sources=sources, nodes=nodes))
    mixture = open_mixture(run, {"tex": 0.3, "math": 0.7}, 128, 0)
    tokenizer = TextTokenizer(run.tokenizer)
    text = "".join(tokenizer.decode(mixture.sample(i).tokens.tolist()) for i in range(20))
    assert "\\" in text and {name: row["tokens"] for name, row in mixture.ledger(20).items()} == {
        "math": 14 * 128,
        "tex": 6 * 128,
    }
