"""Accuracy on problem sets, sampled with vLLM."""
