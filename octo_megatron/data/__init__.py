"""Text -> tokens -> samples. Ground floor: imports only `octo_megatron.config` of the house.

read      rows of .jsonl, .jsonl.gz, .jsonl.zst, .json, .parquet and .txt files
template  a row -> the text of a document
tokenizer text -> ids, and the fingerprint that says which tokenizer made a set
store     token files in Megatron's .bin/.idx format
token_set shards of documents with a manifest, read as one
sources   one source: its documents, tokenised, with held-out documents apart
order     a keyed permutation with random access
blend     which source position i of a mixture draws from
mixture   sample i of a mixture, a pure function of (seed, i)
problems  questions with checkable answers
prepare   everything that a run needs before its first node
builtin/  the procedural corpus of the demo
"""
