"""The trainer: config -> data -> model -> optimizers -> steps -> devices -> loop -> records, checkpoints."""
