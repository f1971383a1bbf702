"""Refit: the trainer's weights into the engine, whatever the layouts of both.

pieces    where the elements of each Hugging Face tensor lie on a rank: of Megatron, of the engine
planner   rectangles on both sides -> the list of moves, and its buckets
transfer  carries a plan out: local copies, point-to-point messages, proof
digest    a digest of rectangles that adds up
refit     the three together, for a trainer's model and an engine of this process
"""
