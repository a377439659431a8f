"""A guided trial that is compiled or replayed as graphs gives nearly the numbers of an uncompiled one."""

import pytest
from contracts.toy_methods import small
from torch._dynamo.utils import counters
from toy import toy_config

from condkd_ray.core import compilation
from condkd_ray.core.method import InputError
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.inversion import Cmi, Fast, Nayer
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.run import local_store
from trial.devices import GPU, prepared_on

GUIDED = {"guidance": Discriminator(hidden=16, weight=10.0), "rounds": 3}


def history(device, **switches):
    """Return the logged losses of a trial's rounds in float32."""
    settings, prepared = toy_config(**GUIDED | switches, precision="float32"), prepared_on(device)
    compilation.forget()
    live, store = start(settings, prepared), local_store(settings, prepared, None)
    for _ in range(settings.rounds):
        run_round(settings, prepared, live, store)
    compilation.forget()
    families = ("inversion/", "kd/loss", "guidance/adversarial")
    return [{name: x for name, x in row.items() if name.startswith(families)} for row in live.history]


def assert_near(found, wanted, rel):
    assert [row.keys() for row in found] == [row.keys() for row in wanted]
    for row, others in zip(found, wanted, strict=True):
        assert row == pytest.approx(others, rel=rel, abs=1e-3)


@pytest.mark.slow
def test_a_trial_compiled_on_a_cpu():
    """The compiler generates code, which takes minutes."""
    try:
        compilation.check("default", False, "cpu")
    except InputError as error:
        pytest.skip(f"no compiler: {error}")
    assert_near(history("cpu", compile="default"), history("cpu"), rel=1e-3)


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize(("compile", "graphs"), [("off", True), ("default", False), ("default", True)])
@pytest.mark.parametrize("kind", [Fast, Cmi, Nayer], ids=lambda kind: kind.__name__)
def test_a_trial_compiled_or_replayed_on_a_gpu(kind, compile, graphs, device):
    counters.clear()
    found = history(device, inversion=small(kind), rounds=5, compile=compile, graphs=graphs)
    # Otherwise the test would pass without a replay.
    assert counters["inductor"]["cudagraph_skips"] == 0
    # Convolutions in TF32 may use other kernels.
    assert_near(found, history(device, inversion=small(kind), rounds=5), rel=2e-2)
