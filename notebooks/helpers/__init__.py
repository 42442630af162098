"""What the notebooks share: minimising functions of two variables, plots and animations, the paper's figures."""
