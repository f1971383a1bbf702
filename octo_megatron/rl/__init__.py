"""Reinforcement learning with verifiable rewards: Megatron trains, vLLM samples.

advantages/  rewards of a step's answers -> how much better each answer or token was than expected; one formula a file
losses/      gains, ratios, KL estimates, aggregation; one formula a file, `policy` puts them together
rollout      which prompts a step draws, with which seeds; the engine's answers, shared between ranks
rewards      the named parts of an answer's reward
batches      answers -> packed micro-batches, the same number on every data-parallel rank
per_token    numbers a token for every answer, computed in packed batches over all ranks
critic       PPO's value model: values, advantages a token, its own updates
reference    the parent's weights, exchanged with the trained ones while they are asked
gap          engine against trainer: how far their log-probabilities are apart, and the limits
update       the training half of a step
records      what each phase leaves on disk, so that a killed run goes on in it
step         one step: sample, reward, update, push the new weights
watch        validation, the best weights, signs of a collapse
begin        where the node's weights come from
stage        the node: start or resume, all steps, done.json
"""
