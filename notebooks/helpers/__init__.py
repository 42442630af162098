"""What the notebooks share: minimizing functions of two variables, plots and animations, the paper's figures.

Importing it works around a fault of jaxlib, as the trainer does (`trainer.jax_setup`).
"""

from trainer.jax_setup import work_around

work_around()
