"""vLLM: start it in this process, sample from it, push weights into it."""
