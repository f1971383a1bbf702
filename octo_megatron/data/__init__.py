"""Text -> tokens -> samples. Ground floor: imports only `octo_megatron.config` of the house.

read      rows of .jsonl, .jsonl.gz, .jsonl.zst, .json, .parquet and .txt files, whole or in pieces; row, lines and
          parquet are parts of it
template  a row -> text, by a format string or a named template
documents a row -> a document, or why it is a bad row
tokenizer text -> ids, and the fingerprint that says which tokenizer made a set (tokenizer_files: its forms)
tokenise  `octo tokenize`: files -> a set. pieces says what is done by whom, work is a worker, coordinate and
          distribute have many of them work, worker is their process, mpi makes them ranks
decontaminate  evaluation items in training text, by the rules of contamination
store     token files in Megatron's .bin/.idx format
token_set shards of documents with a manifest, read as one
sources   one source: its documents, tokenised, with held-out documents apart
blend     which source position i of a mixture draws from
order     a keyed permutation with random access
epoch     the order of a source's samples within an epoch, made of such permutations
sample    tokens, document boundaries, positions and loss mask
concat    packing: documents joined and cut at the sequence length
whole     packing: documents kept whole where they fit
mixture   sample i of a mixture, a pure function of (seed, i)
ledger    tokens and documents by source and epoch up to any position
prefetch  batches made ahead in the background
problems  questions with checkable answers
prepare   everything that a run needs before its first node
builtin/  the procedural corpus of the demo
"""
