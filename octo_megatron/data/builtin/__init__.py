"""The built-in corpus: a procedural task family on which a model of half a million weights shows the whole recipe.

arithmetic   the problems, and which of them may occur where
corpus       the text parts
vocabulary   the tokenizer

Standard library and `tokenizers` only; everything is a pure function of its arguments.
"""

from octo_megatron.data.builtin.arithmetic import Problem, check_overlap, problems
from octo_megatron.data.builtin.corpus import PARTS, documents
from octo_megatron.data.builtin.vocabulary import save_tokenizer, train_tokenizer

__all__ = [
    "PARTS",
    "Problem",
    "check_overlap",
    "documents",
    "problems",
    "save_tokenizer",
    "train_tokenizer",
]
