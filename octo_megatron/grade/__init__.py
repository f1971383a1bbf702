"""Answers: find the marked one, compare it with the right one, score 1 or 0; rewards of one's own in a process."""

from octo_megatron.grade.answers import grade, grade_all, marked_answer
from octo_megatron.grade.custom import CustomReward

__all__ = ["CustomReward", "grade", "grade_all", "marked_answer"]
