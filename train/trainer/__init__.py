"""The trainer: config, data -> model -> optimizers -> devices -> steps -> building -> loop -> records, checkpoints."""
