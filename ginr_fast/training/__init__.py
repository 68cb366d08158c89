"""Training: recipes, the loop, losses, metrics and checkpoints."""
