"""Compiled kernels for `Cautious`: the same numbers as the eager arithmetic, and the eager arithmetic wherever they fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from halflife.optim.actions import cautious, kernels
from halflife.optim.actions.cautious import ALONG, BACK
from halflife.optim.actions.kernels import Kernel
from halflife.optim.attaching import attach
from halflife.rules import Cautious, Constant

R = 0.25
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no compiler"
)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large."""
    monkeypatch.setattr(cautious, "LEAST_ELEMENTS", 2)
    monkeypatch.setattr(cautious, "LEAST_IN_ALL", 2)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled yet, and what a test makes is gone after it."""
    for kernel in (ALONG, BACK):
        monkeypatch.setattr(kernel, "_made", {})


def steps(kind: Callable[..., Optimizer], dtype: torch.dtype, *, apart: bool = False, **settings: Any) -> Tensor:
    """Take three steps on numbers of both signs, zeros, and tiny and huge ones among them, and return the weights."""
    generator = torch.Generator().manual_seed(5)
    numbers = torch.randn(2, 37, 64, generator=generator, dtype=torch.float64)
    numbers[0, 3], numbers[1, 5] = 0.0, 0.0
    numbers[0, 7] *= 1e-6
    weight = nn.Parameter(numbers[0].to(dtype).t().contiguous().t() if apart else numbers[0].to(dtype))
    optimizer = kind([weight], lr=1e-2, **settings)
    attach(optimizer, Cautious(Constant(R)), select="all")
    for step in range(3):
        weight.grad = (numbers[1] * (-1) ** step + numbers[0] * step).to(dtype)
        optimizer.step()
    return weight.detach()


OPTIMIZERS: list[tuple[Callable[..., Optimizer], dict[str, Any]]] = [
    (AdamW, {"eps": 1e-3}),
    (SGD, {}),
    (RMSprop, {"eps": 1e-3}),
]


@needs_compiler
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (torch.bfloat16, torch.float16, torch.float64)),
    ],
    ids=str,
)
def test_the_compiled_pass_equals_the_eager_one_to_rounding(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, unknown: None
) -> None:
    """On an optimizer with memory, one without any, and one of which nothing is known."""
    expected = [steps(kind, dtype, **settings) for kind, settings in OPTIMIZERS]
    assert kernels.report() == []
    monkeypatch.setattr(cautious, "LEAST_ELEMENTS", 2)
    monkeypatch.setattr(cautious, "LEAST_IN_ALL", 2)
    found = [steps(kind, dtype, **settings) for kind, settings in OPTIMIZERS]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    lines = kernels.report()
    assert [line.rpartition(": ")[2] for line in lines] == ["compiled"] * 3, lines


@needs_compiler
@pytest.mark.usefixtures("large", "unknown")
def test_what_the_kernel_is_not_made_for_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transposed memory, subclasses of tensors, one element, and the first step of a momentum."""
    calls: list[str] = []

    def run(self: Kernel, *arguments: Tensor) -> bool:
        calls.append(self._name)
        return False

    monkeypatch.setattr(Kernel, "run", run)
    steps(AdamW, torch.float32, apart=True)
    one = nn.Parameter(torch.ones(()))
    optimizer = AdamW([one], lr=0.1)
    attach(optimizer, Cautious(Constant(R)), select="all")
    one.grad = torch.ones(())
    optimizer.step()
    assert calls == []
    steps(AdamW, torch.float32)
    assert len(calls) == 2, "two of three steps: at the first there is no moment yet"
    calls.clear()
    steps(SGD, torch.float32)
    assert len(calls) == 3
    monkeypatch.undo()

    class Sub(Tensor):
        """Has arithmetic of its own."""

    weight = torch.ones(8).as_subclass(Sub)
    assert not BACK.run(weight, torch.ones(8), torch.tensor(R))
    assert torch.equal(weight.as_subclass(Tensor), torch.ones(8))


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("large", "unknown")
def test_complex_weights_and_a_fraction_that_is_a_tensor() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, before = (torch.randn(9, 5, dtype=torch.complex64, generator=generator) for _ in range(2))
    expected = torch.view_as_complex(
        torch.where(
            (torch.view_as_real(before) - torch.view_as_real(weight)) * torch.view_as_real(before) >= 0,
            torch.view_as_real(weight) - R * torch.view_as_real(before),
            torch.view_as_real(weight),
        )
    )
    action = cautious.MaskedShrink()
    action._run(cautious._shrink_back, weight, (before,), (torch.tensor(R, dtype=torch.float64),), fused=True)
    torch.testing.assert_close(weight, expected)
    assert [line.endswith("compiled") for line in kernels.report()] == [True]


# ---- where nothing is compiled


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the eager pass gives."""
    return steps(AdamW, torch.float32)


@pytest.mark.usefixtures("unknown")
def test_without_a_compiler_the_eager_pass_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, expected: Tensor, request: pytest.FixtureRequest
) -> None:
    """It is looked for once, and nothing is said but in the report."""
    from torch._inductor import config

    request.getfixturevalue("large")
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiling = mock.Mock(wraps=torch.compile)
    monkeypatch.setattr(torch, "compile", compiling)
    with config.patch({"cpp.cxx": (None, "/no/compiler")}):
        assert torch.equal(steps(AdamW, torch.float32), expected)
        assert torch.equal(steps(AdamW, torch.float32), expected)
    assert compiling.call_count == 1
    (line,) = kernels.report()
    assert line.startswith(
        "cautious decay before the step on cpu, float32, float32, float32, float32, float32: eager: "
    )
    assert "compiler" in line.lower()


@pytest.mark.usefixtures("unknown")
def test_where_compiling_is_switched_off_the_eager_pass_stays(expected: Tensor, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("large")
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(steps(AdamW, torch.float32), expected)
    (line,) = kernels.report()
    assert line.endswith("eager: RuntimeError: torch.compile is switched off")


@pytest.mark.usefixtures("unknown")
def test_a_kernel_whose_numbers_differ_is_not_used(
    monkeypatch: pytest.MonkeyPatch, expected: Tensor, request: pytest.FixtureRequest
) -> None:
    """As where a compiler breaks the comparison: here it takes ``>`` for ``>=``."""
    request.getfixturevalue("large")

    def wrong(weight: Tensor, memory: Tensor, gradient: Tensor, gain: Tensor, r: Tensor) -> None:
        weight.copy_(weight - torch.where((memory + gain * gradient) * weight > 0, r * weight, 0.0))

    monkeypatch.setattr(torch, "compile", lambda body, **kwargs: wrong)
    assert torch.equal(steps(AdamW, torch.float32), expected)
    (line,) = kernels.report()
    assert line.endswith("eager: the compiled numbers differ")


@pytest.mark.usefixtures("unknown")
def test_a_kernel_that_fails_later_is_given_up(
    monkeypatch: pytest.MonkeyPatch, expected: Tensor, request: pytest.FixtureRequest
) -> None:
    """For example after `torch.compiler.set_stance`: it raises before it writes."""
    request.getfixturevalue("large")
    calls = 0

    def compiled(body: Callable[..., None], **kwargs: Any) -> Callable[..., None]:
        def once(*arguments: Tensor) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise RuntimeError("torch.compile is switched off")
            ALONG._eager(*arguments)

        return once

    monkeypatch.setattr(torch, "compile", compiled)
    assert torch.equal(steps(AdamW, torch.float32), expected)
    assert calls == 2
    assert [line.endswith("switched off") for line in kernels.report()] == [True]


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for a kernel."""

    def run(self: Kernel, *arguments: Tensor) -> bool:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr(Kernel, "run", run)


@pytest.mark.usefixtures("forbidden", "large")
def test_inside_a_compiled_step_nothing_is_compiled_beside_it() -> None:
    weight = nn.Parameter(torch.ones(16))
    optimizer = AdamW([weight], lr=0.1)
    attach(optimizer, Cautious(Constant(R)), select="all")
    torch._dynamo.reset()
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        weight.grad = torch.ones(16)
        step()
    torch._dynamo.reset()
    assert float(weight.detach()[0]) < (1 - R) ** 2


@pytest.mark.usefixtures("forbidden")
def test_small_models_do_not_wait_for_a_compiler() -> None:
    """One large tensor in a model that is small in all, and many small ones in a large model."""
    weight = nn.Parameter(torch.ones(kernels.LEAST_ELEMENTS))
    many = [nn.Parameter(torch.ones(kernels.LEAST_ELEMENTS - 1)) for _ in range(130)]
    assert sum(each.numel() for each in many) >= kernels.LEAST_IN_ALL > weight.numel()
    for params in ([weight], many):
        optimizer = SGD(params, lr=0.1)
        attach(optimizer, Cautious(Constant(R)), select="all")
        for each in params:
            each.grad = torch.ones_like(each)
        optimizer.step()
        assert float(params[-1].detach()[0]) == pytest.approx(1 - R - 0.1)
