import pytest
import torch
from torch import Tensor

from condkd_ray.core import compilation
from condkd_ray.core.compilation import begin_step, check, clear_compiled, compiling, whole
from condkd_ray.core.config import build
from condkd_ray.core.method import InputError
from condkd_ray.trial.config import TrialConfig, dump
from condkd_ray.trial.hardware import CPU, Hardware, settled

GPU = Hardware("some GPU", True)


@whole
def doubled(x: Tensor) -> Tensor:
    """Return 2 x."""
    return x + x


@pytest.fixture
def compile_calls(monkeypatch):
    """Replace `torch.compile`, which takes minutes, by a function that records its arguments and compiles nothing."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **settings: (calls.append(settings), function)[1])
    clear_compiled()
    yield calls
    clear_compiled()


@pytest.mark.parametrize(
    ("compile", "graphs", "backend", "mode"),
    [
        ("default", False, "inductor", None),
        ("default", True, "inductor", "reduce-overhead"),
        ("max-autotune", False, "inductor", "max-autotune-no-cudagraphs"),
        ("max-autotune", True, "inductor", "max-autotune"),
        ("off", True, "cudagraphs", None),
    ],
)
def test_compile_and_graphs_together_determine_backend_and_mode(compile, graphs, backend, mode, compile_calls):
    with compiling(compile, graphs):
        begin_step()
        assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0))
        doubled(torch.ones(2))
    assert compile_calls == [{"fullgraph": True, "dynamic": False, "backend": backend, "mode": mode}]
    if backend == "inductor" and mode is not None:
        assert mode in torch._inductor.list_mode_options()
    assert backend in torch._dynamo.list_backends(exclude_tags=())


def test_without_compile_and_graphs_the_function_is_not_compiled(compile_calls):
    doubled(torch.ones(2))
    with compiling("off", False):
        doubled(torch.ones(2))
    with compiling("default", False), compiling("off", False):
        doubled(torch.ones(2))
    assert compile_calls == []
    assert doubled.__doc__ == "Return 2 x."


def test_forget_discards_compiled_functions(compile_calls):
    for _ in range(2):
        with compiling("default", False):
            doubled(torch.ones(2))
        clear_compiled()
    assert len(compile_calls) == 2


def test_off_in_yaml_is_the_word_off():
    assert build(TrialConfig, {"compile": False}, "x").compile == "off"
    assert "compile: 'off'" in dump(TrialConfig())
    with pytest.raises(InputError, match=r"x: compile is True; accepted: 'off', 'default' or 'max-autotune'"):
        build(TrialConfig, {"compile": True}, "x")


def test_graphs_on_a_cpu_are_rejected():
    with pytest.raises(InputError, match="graphs on a CPU is True; accepted: false, or a trial on a GPU"):
        check("off", True, "cpu")
    with pytest.raises(InputError, match="graphs on a CPU is True; accepted: false, or trials on a GPU"):
        settled(TrialConfig(graphs=True), CPU)
    assert settled(TrialConfig(graphs=True, compile="default"), GPU).graphs


def test_without_a_compiler_the_error_says_what_is_missing(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("\n  No working C++ compiler found\nand more")

    compilation.compiler_fault.cache_clear()
    monkeypatch.setattr(torch, "compile", fails)
    wanted = "compile is 'default'; accepted: off, or a machine on which PyTorch's compiler works: here No working C"
    for call in (lambda: check("default", False, "cpu"), lambda: settled(TrialConfig(compile="default"), CPU)):
        with pytest.raises(InputError, match=wanted):
            call()
    settled(TrialConfig(compile="default"), GPU)  # the compiler must be on the machine that runs the trial
    check("off", False, "cpu")
    compilation.compiler_fault.cache_clear()
