"""What the notebooks share: minimising functions of two variables, plots and animations, the paper's figures.

Importing it takes the trainer's way around a fault of jaxlib (`trainer.jaxlib_fault`).
"""

from trainer.jaxlib_fault import work_around

work_around()
