"""Everything of acorn that touches datatrove (0.10.1): steps over corpus artifacts, executors, and what they are for.

Compatibility, each with the test that shows it is still needed (tests/corpus/test_datatrove.py):

- *Words offline.* For English, datatrove's word tokenizer is spaCy's, an extra that acorn does not install, and NLTK's
  own `word_tokenize` downloads its sentence model. `words.py` has two tokenizers that need neither, passed in as
  `language`, where datatrove takes an object as well as a code. A recipe's `language` asks for datatrove's own.
- *Local executor.* `LocalPipelineExecutor.run` starts a manager process that outlives a killed parent, and with it the
  lock by which a new attempt waits for the old one. `execute.py` overrides `run` (a dozen lines, no manager). Its
  pool would wait for ever for a worker that was killed; `corpus/processes.py` does not.
- *Slurm.* `SlurmPipelineExecutor.run` submits anew whatever is in the queue. `slurm.py` keeps the ids of the arrays,
  waits for those of an earlier attempt, and leaves out upstream's job that merges statistics.
- *Which duplicate stays.* `MinhashDedupCluster` keeps the root of a union by size, which depends on how the documents
  were cut into tasks. `minhash.py` rewrites the lists of removals so that the first document of a cluster stays.
- *Decontamination.* `NGramsDecontIndexer.run` always builds lighteval's old registry, which lighteval 0.13 no longer
  has. `ngrams.py` writes the index with the indexer's own `compute_hashes`.
- *Log.* datatrove logs every task to stderr; it is silenced in this process. Errors are raised all the same.
"""
