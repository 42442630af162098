"""The trainer: config, data -> networks -> optimizers -> devices -> steps -> loop -> progress -> records, watch."""
