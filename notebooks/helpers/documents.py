"""The optimizers of the source documents, as optax chains that give the numbers the documents print.

The notebook steps six optimizers over f(x, y) = x^2 + y^2 + xy - 4x - 8y; `NOTEBOOK` holds them in its settings, with
states that are its own (v of the momentum is optax's trace, since the learning rate comes in front), and `printed` the
rows it prints. The class reference's `GradientMemory` is `running_mean` and `normalized`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from helpers import functions
from helpers.minimize import minimize

NOTEBOOK: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.5),
    # v = 0.5 v - 0.5 g, w += v. optax.sgd(0.5, momentum=0.5) takes the same steps; its trace is -v / 0.5.
    "momentum": optax.chain(optax.scale(-0.5), optax.trace(0.5)),
    # v = 0.8 v - 0.2 g, w += 0.8 v - 0.2 g, as optax.sgd(0.2, momentum=0.8, nesterov=True) steps too.
    "nesterov": optax.chain(optax.scale(-0.2), optax.trace(0.8, nesterov=True)),
    # The notebook divides by sqrt(h) + 1e-7. No optax piece does so with a sum of squares (optax: sqrt(h + eps));
    # without the 1e-7 a step differs by less than 3e-8 of itself here. optax starts h at 0.1 unless told otherwise.
    "adagrad": optax.adagrad(10.0, initial_accumulator_value=0.0, eps=0.0),
    "rmsprop": optax.rmsprop(0.9, decay=0.75, eps=1e-7, eps_in_sqrt=False),  # optax's default is inside the root
    # The notebook adds 1e-7 to v before its bias is corrected: to v_hat it adds 1e-7 / (1 - 0.999^t), a schedule.
    "adam": optax.inject_hyperparams(optax.adam)(
        0.9, b1=0.9, b2=0.999, eps=0.0, eps_root=lambda count: 1e-7 / (1 - 0.999 ** (count + 1))
    ),
}


def running_mean(mean_weight: float = 0.9, unbiased: bool = False) -> optax.GradientTransformation:
    """Gradients replaced by their running mean (the class reference's `update_mean`), from 0."""
    return optax.ema(mean_weight, debias=unbiased)


def normalized(mean_square_weight: float = 0.9, unbiased: bool = False) -> optax.GradientTransformation:
    """Gradients divided by the root of their running mean square (`update_mean_square`, then `normalize`), from 0.

    A weight of 0, with which the class reference keeps no mean square, leaves them as they are.
    Both memories together, unbiased, are `optax.scale_by_adam`.
    """
    if mean_square_weight == 0:
        return optax.identity()
    return optax.scale_by_rms(mean_square_weight, eps_in_sqrt=False, bias_correction=unbiased)


def printed(name: str) -> list[dict[str, np.ndarray]]:
    """The rows that the notebook prints for an optimizer: each the step's gradients, the point and state after it.

    Keys: params, grads, h, m and v (float64, (2,): x, y; NaN where the document is cut off) and func (float64, ()).
    """
    rows = []
    for line in _PRINTED[name].strip().splitlines():
        cells = [cell.split() for cell in line.split(";")]
        rows.append({key: np.squeeze(np.array(numbers, np.float64)) for key, *numbers in cells})
    return rows


def free_running_errors(name: str) -> np.ndarray:
    """How far the chain, left to itself in float64 without rounding, is from each printed point: the larger of x, y."""
    points = np.array([row["params"] for row in printed(name)])
    with jax.enable_x64(True):
        path = minimize(functions.TILTED, jnp.zeros(2), NOTEBOOK[name], steps=len(points))
        return np.max(np.abs(np.asarray(path.positions[1:]) - points), axis=1)


# What the notebook prints, as far as the document goes. Gradients are rounded to 4 decimals before they are used, as
# are AdaGrad's, RMSProp's and Adam's states and points. The v of its Nesterov cell is the momentum cell's: left out.
_PRINTED = {
    "sgd": """
        params 2.0 4.0; grads -4.0 -8.0; func -12.0000
        params 0.0 3.0; grads 4.0 2.0; func -15.0000
        params 0.5 4.0; grads -1.0 -2.0; func -15.7500
        params 0.0 3.75; grads 1.0 0.5; func -15.9375
        params 0.125 4.0; grads -0.25 -0.5; func -15.9844
        params 0.0 3.9375; grads 0.25 0.125; func -15.9961
        params 0.03125 4.0; grads -0.0625 -0.125; func -15.9990
        params 0.0 3.9844; grads 0.0625 0.0312; func -15.9998
        params 0.0078 4.0; grads -0.0156 -0.0312; func -15.9999
        params 0.0 3.9961; grads 0.0156 0.0078; func -16.0000
    """,
    "momentum": """
        params 2.0 4.0; grads -4.0 -8.0; v 2.0 4.0; func -12.0000
        params 1.0 5.0; grads 4.0 2.0; v -1.0 1.0; func -13.0000
        params -1.0 4.0; grads 3.0 3.0; v -2.0 -1.0; func -15.0000
        params -1.0 4.0; grads -2.0 -1.0; v 0.0 0.0; func -15.0000
        params 0.0 4.5; grads -2.0 -1.0; v 1.0 0.5; func -15.7500
        params 0.25 4.25; grads 0.5 1.0; v 0.25 -0.25; func -15.8125
        params 0.0 3.75; grads 0.75 0.75; v -0.25 -0.5; func -15.9375
        params 0.0 3.75; grads -0.25 -0.5; v 0.0 0.0; func -15.9375
        params 0.125 4.0; grads -0.25 -0.5; v 0.125 nan
    """,
    "nesterov": """
        params 1.4400000000000002 2.8800000000000003; grads -4.0 -8.0; func -14.2848
        params 1.3184000000000005 4.192000000000001; grads 1.76 -0.8; func -13.9718
        params 0.48435200000000034 4.500736000000002; grads 2.8288 1.7024; func -15.2721
        params -0.2592623999999998 4.485220800000002; grads 1.4694 1.4858; func -15.8231
        params -0.6070619199999999 4.454504640000002; grads -0.0333 0.7112; func -15.7008
        params -0.617173536 4.435039712000003; grads -0.7596 0.3019; func -15.6983
        params -0.4590508288 4.376727769600003
    """,
    "adagrad": """
        params 10.0 10.0; grads -4.0 -8.0; h 16.0 64.0; func 180.0000
        params 0.1163 0.6021; grads 26.0 22.0; h 692.0 548.0; func -4.8359
        params 1.3109 3.3459; grads -3.1653 -6.6795; h 702.0191 592.6157; func -14.7112
        params 0.5703 3.3448; grads 1.9677 0.0027; h 705.8909 592.6157; func -15.6191
        params 0.3876 3.6487; grads 0.4854 -0.7401; h 706.1265 593.1634; func -15.8625
        params 0.2281 3.778; grads 0.4239 -0.315; h 706.3062 593.2626; func -15.9493
        params 0.14 3.8666; grads 0.2342 -0.2159; h 706.361 593.3092; func -15.9813
        params 0.0848 3.9187; grads 0.1466 -0.1268
    """,
    "rmsprop": """
        params 1.8 1.8; grads -4.0 -8.0; h 4.0 16.0; func -11.8800
        params 1.1255 2.4324; grads 1.4 -2.6; h 3.49 13.69; func -14.0402
        params 0.7535 2.971; grads 0.6834 -2.0097; h 2.7343 11.2772; func -15.1487
        params 0.4572 3.3649; grads 0.478 -1.3045; h 2.1078 8.8833; func -15.6780
        params 0.2585 3.6449; grads 0.2793 -0.813; h 1.6004 6.8277; func -15.8989
        params 0.1259 3.8237; grads 0.1619 -0.4517; h 1.2069 5.1718; func -15.9753
        params 0.0545 3.9271; grads 0.0755 -0.2267; h 0.9066 3.8917; func -15.9957
        params 0.0151 3.9752; grads 0.0361 -0.0913; h 0.6803 nan
    """,
    "adam": """
        params 0.9 0.9; grads -4.0 -8.0; v 0.016 0.064; m -0.4 -0.8; func -8.3700
        params 1.68 1.7728; grads -1.3 -5.3; v 0.0177 0.092; m -0.49 -1.25; func -11.9589
        params 2.1122 2.5807; grads 1.1328 -2.7744; v 0.019 0.0996; m -0.3277 -1.4024; func -12.5220
        params 2.1267 3.2788; grads 2.8051 -0.7264; v 0.0268 0.1; m -0.0144 -1.3348; func -12.4908
        params 1.8599 3.8339; grads 3.5322 0.6843; v 0.0392 0.1004; m 0.3403 -1.1329; func -12.8221
        params 1.4279 4.236; grads 3.5537 1.5277; v 0.0518 0.1026; m 0.6616 -0.8668; func -13.5684
        params 0.9013 4.4971
    """,
}
