"""A run put together in memory: model, adapter, updates, step, places."""
