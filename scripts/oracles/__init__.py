"""Reference optimizers, and how near ours must stay to each."""
