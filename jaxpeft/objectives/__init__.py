"""What a training step minimises, and what an evaluation reports."""
