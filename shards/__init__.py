"""Audio in, a shard set out, batches out: everything up to the tensor that a model sees."""

__version__ = "0.1.0"
