"""A shard set in, a run out: models, the training loop, evaluation and reports."""
