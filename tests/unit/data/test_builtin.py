"""The built-in corpus: deterministic, correct, and nothing that training text shares with a problem."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from itertools import islice

import pytest
from transformers import AutoTokenizer

from octo_megatron.config.errors import UserError
from octo_megatron.data import builtin
from octo_megatron.data.builtin import arithmetic, corpus

SPLITS = ("rl", "same", "hard")
DOCUMENTS = 3000

FINGERPRINT = """
import hashlib, sys
from itertools import islice
from octo_megatron.data import builtin
h = hashlib.sha256()
for part in builtin.PARTS:
    for text in islice(builtin.documents(part, 7), 300):
        h.update(text.encode() + b"\\0")
for split in ("rl", "same", "hard"):
    h.update(repr(builtin.problems(split, 50, 7)).encode())
h.update(builtin.train_tokenizer(7, 512).to_str().encode())
print(h.hexdigest())
"""


@pytest.fixture(scope="module")
def text():
    return {part: list(islice(builtin.documents(part, 0), DOCUMENTS)) for part in builtin.PARTS}


@pytest.fixture(scope="module")
def tokenizer():
    return builtin.train_tokenizer(0, 512)


def evaluate(chain):
    """Value of `97-55-12`, by other means than the module's."""
    return sum(int(term) for term in re.findall(r"[+-]?\d+", chain))


def test_the_same_in_another_process_with_other_hash_seeds():
    def fingerprint(hash_seed):
        made = subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout.strip()

    assert fingerprint("1") == fingerprint("2") != hashlib.sha256().hexdigest()


@pytest.mark.parametrize("part", builtin.PARTS)
def test_seeds_differ_and_streams_restart(part):
    first, again, other = (list(islice(builtin.documents(part, seed), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_problem_set_begins_with_every_shorter_one_and_has_no_duplicates():
    for split in SPLITS:
        some = builtin.problems(split, 400, 1)
        assert builtin.problems(split, 30, 1) == some[:30]
        assert len({problem.prompt for problem in some}) == len({problem.id for problem in some}) == 400
        assert some != builtin.problems(split, 400, 2)


def test_answers_of_problems_are_right_and_levels_are_as_said():
    for split, operations in (("rl", 4), ("same", 4), ("hard", 5)):
        for problem in builtin.problems(split, 200, 0):
            chain = re.fullmatch(r"Problem: ([\d+-]+)=", problem.prompt).group(1)
            assert str(evaluate(chain)) == problem.answer
            assert len(re.findall(r"[+-]", chain)) == operations
            assert problem.level == f"{operations} operations"


def test_no_column_carries_and_totals_keep_two_digits():
    for problem in builtin.problems("hard", 300, 0):
        terms = arithmetic.parse(problem.prompt.removeprefix("Problem: ").removesuffix("="))
        total = terms[0]
        for term in terms[1:]:
            sign = 1 if term > 0 else -1
            tens, units = divmod(abs(term), 10)
            assert tens and units
            assert 0 <= total // 10 + sign * tens <= 9
            assert 0 <= total % 10 + sign * units <= 9
            total += term
            assert 10 <= total <= 99


def test_nothing_is_shared_between_training_text_and_the_splits(text):
    splits = {f"{split}{seed}": builtin.problems(split, 1000, seed) for split in SPLITS for seed in (0, 1)}
    for seed in (0, 1):
        compared = builtin.check_overlap(
            (document for part in builtin.PARTS for document in text[part]),
            {split: splits[f"{split}{seed}"] for split in SPLITS},
        )
        assert compared > 10_000
    held_out = {p.prompt for seed in (0, 1) for split in ("same", "hard") for p in splits[f"{split}{seed}"]}
    assert not held_out & {p.prompt for seed in (0, 1) for p in splits[f"rl{seed}"]}, "over seeds too"


def test_the_overlap_check_sees_questions_chain_starts_and_remainders():
    (problem,) = builtin.problems("same", 1, 0)
    chain = problem.prompt.removeprefix("Problem: ").removesuffix("=")
    for document in (
        problem.prompt + " \\boxed{1}",
        f"Chains: 11+22=33; {chain}={problem.answer}",
        f"Problem: 12+21={chain} (33-21=12 ok)",
    ):
        with pytest.raises(UserError, match="occurs in training text and in the problems of split same"):
            builtin.check_overlap([document], {"same": [problem]})
    with pytest.raises(UserError, match="split same"):
        builtin.check_overlap([], {"rl": [problem], "same": [problem]})


def test_expressions_are_longest_runs():
    assert arithmetic.expressions_in("Chains: 97-55-12=42-12 (42+55=97 ok)=30; 11+22+33+11=77") == {
        "97-55-12",
        "11+22+33+11",
    }


def test_buckets_depend_on_the_expression_alone_and_have_their_shares():
    drawn = {p.prompt[9:-1] for split in SPLITS for p in builtin.problems(split, 200, 5)}
    assert "train" not in {arithmetic.bucket_of(chain) for chain in drawn}
    r = random.Random(0)
    buckets = [arithmetic.bucket_of(arithmetic.expression(arithmetic.draw(r, 4))) for _ in range(5000)]
    for name, share in (("train", 0.8), ("rl", 0.1), ("held-out", 0.1)):
        assert abs(buckets.count(name) / 5000 - share) < 0.02


@pytest.mark.parametrize("part", ("web", "short", "long", "hybrid"))
def test_every_worked_line_of_the_text_is_right(text, part):
    for document in text[part]:
        work, _, answer = document.partition(" \\boxed{")
        for chain in work.split(": ", 1)[1].split("; "):
            checks = re.findall(r"\(([\d+-]+)=(\d+) ok\)", chain)
            assert all(evaluate(left) == int(right) for left, right in checks)
            lines = re.sub(r" \([^)]*\)", "", chain).rstrip("=").split("=")
            assert len({evaluate(line) for line in lines}) == 1, document
            if answer:
                assert answer == f"{evaluate(lines[0])}}}"


def test_checks_undo_the_step_they_follow(text):
    for document in text["long"]:
        terms = [int(term) for term in re.findall(r"[+-]?\d+", document.split("=")[0])]
        steps = re.findall(r"=(\d+)[+\d-]* \((\d+)([+-]\d+)=(\d+) ok\)", document)
        assert len(steps) in (0, len(terms) - 1)
        total = terms[0]
        for operand, (result, again, undo, before) in zip(terms[1:], steps, strict=False):
            assert (int(before), int(undo)) == (total, -operand)
            total += operand
            assert int(result) == int(again) == total


def test_styles_differ_as_said(text, tokenizer):
    def length(part):
        worked = [d for d in text[part] if not re.search(r"= \\boxed", d)]
        return sum(len(tokenizer.encode(d).ids) for d in worked) / len(worked)

    assert length("short") < length("hybrid") < length("long")
    assert length("long") > 1.5 * length("short")
    for part in ("short", "long", "hybrid"):
        at_once = sum(bool(re.search(r"= \\boxed", d)) for d in text[part]) / DOCUMENTS
        assert abs(at_once - corpus.DIRECT) < 0.03, "answers without reasoning are as common in every style"
        assert all(d.startswith("Problem: ") and d.endswith("}") for d in text[part])
    checked = sum(" ok)" in d for d in text["hybrid"]) / DOCUMENTS
    assert abs(checked - (1 - corpus.DIRECT) / 2) < 0.03


def test_general_text_has_no_ability(text):
    right = answered = 0
    for document in text["general"]:
        if found := re.fullmatch(r"Problem: ([\d+-]+)= \\boxed\{(\d+)\}", document):
            answered += 1
            right += evaluate(found.group(1)) == int(found.group(2))
        else:
            assert "boxed" not in document and " ok)" not in document
    assert 10 < answered < 0.05 * DOCUMENTS
    assert right <= 0.1 * answered


def test_tokenizer_loads_in_transformers_and_goes_round(text, tokenizer, tmp_path):
    builtin.save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token == "<eos>" and loaded.eos_token_id == 0
    assert loaded.pad_token == "<pad>" and loaded.pad_token_id == 1
    assert len(loaded) == tokenizer.get_vocab_size() <= 512
    for part in builtin.PARTS:
        for document in text[part][:100]:
            ids = tokenizer.encode(document).ids
            assert loaded(document)["input_ids"] == ids, "and nothing is added"
            assert tokenizer.decode(ids) == loaded.decode(ids) == document
            assert not {0, 1} & set(ids)
    odd = "Ünïcode \t\n\n  spaces 123 \\boxed{4}"
    assert loaded.decode(loaded(odd)["input_ids"]) == odd
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["eos_token"] == "<eos>"


def test_digits_are_single_tokens(tokenizer):
    assert tokenizer.encode("97-55=42").tokens == ["9", "7", "-", "5", "5", "=", "4", "2"]


def test_no_token_spans_the_end_of_a_prompt(text, tokenizer):
    for part in ("short", "long", "hybrid"):
        for document in text[part][:300]:
            end = document.index("=") + 1
            prompt, answer = document[:end], document[end:]
            assert (
                tokenizer.encode(prompt).ids + tokenizer.encode(answer).ids == tokenizer.encode(document).ids
            )


def test_the_vocabulary_can_be_smaller_and_says_when_it_cannot():
    assert builtin.train_tokenizer(0, 300).get_vocab_size() == 300
    with pytest.raises(UserError, match="too small"):
        builtin.train_tokenizer(0, 200)


def test_unknown_names_are_one_line_errors():
    with pytest.raises(UserError, match="no part 'maths': use general, web"):
        builtin.documents("maths", 0)
    with pytest.raises(UserError, match="no split 'test': use rl, same, hard"):
        builtin.problems("test", 1, 0)
