"""Optimizers compared, each at its best learning rate: options -> search -> trials -> ledger -> evidence -> writeup."""
