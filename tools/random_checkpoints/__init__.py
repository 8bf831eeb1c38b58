"""Small random checkpoints, one module per model family."""
