"""Reinforcement learning with verifiable rewards (GRPO): Megatron trains, vLLM samples.

advantages  rewards of a group of answers -> how much better each was than its group
losses      the clipped policy loss over tokens
rollout     which prompts a step draws, with which seeds; sample, grade, share between ranks
batches     answers -> packed micro-batches, the same number on every data-parallel rank
step        one step: sample, compare engine and trainer, update, push the new weights
stage       the node: start or resume, evaluate, all steps, done.json
"""
