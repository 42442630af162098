"""Gravity (arXiv 2101.09192), a kinematic optimizer, as an optax gradient transformation."""

from gravity_optax._gravity import (
    ScaleByGravityState as ScaleByGravityState,
    gravity as gravity,
    gravity_term as gravity_term,
    scale_by_gravity as scale_by_gravity,
)

__version__ = "0.1.0"
