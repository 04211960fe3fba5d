"""A run directory on disk: its files, its lock, its metrics, its checkpoints."""
