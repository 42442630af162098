"""Gravity (arXiv 2101.09192), a kinematic optimizer, as an optax gradient transformation."""

from gravity_optax._gravity import (
    ScaleByGravityState as ScaleByGravityState,
)
from gravity_optax._gravity import (
    gravity as gravity,
)
from gravity_optax._gravity import (
    gravity_term as gravity_term,
)
from gravity_optax._gravity import (
    scale_by_gravity as scale_by_gravity,
)

__version__ = "0.1.0"
