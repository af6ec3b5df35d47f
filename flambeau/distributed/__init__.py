"""Training in several processes: copies of the model, shards of it, and what keeps them the same."""
