"""The gate: five proofs that a Hugging Face folder and a Megatron checkpoint are the same model (see run.py)."""
