"""Answers: find the marked one, compare it with the right one, score 1 or 0."""

from octo_megatron.grade.answers import grade, marked_answer

__all__ = ["grade", "marked_answer"]
