"""Gravity (arXiv 2101.09192), a kinematic optimizer, as an optax gradient transformation."""

from gravity_optax._gradient_term import Damping, damping, gravity_term
from gravity_optax._gravity import ScaleByGravityState, gravity, scale_by_gravity

__all__ = ["Damping", "ScaleByGravityState", "damping", "gravity", "gravity_term", "scale_by_gravity"]
__version__ = "0.1.0"
