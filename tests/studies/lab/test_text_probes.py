"""Probes of runs on text: against dense oracles on models of about a hundred weights, and through the loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from halflife.errors import UserError
from halflife.studies.lab.text import probes as text_probes
from halflife.studies.lab.text.models import build_text_model
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.lab.text.probes import check_probes, probe
from halflife.studies.specs import TextBranch, TextRun
from halflife.studies.specs.base import spec_from_json
from tests.studies.lab.text_runs import GPT, MLP, run, write_corpus

ALL = ("hessian-trace", "gauss-newton-trace", "jacobian-norm", "gradient-norm")
TINY = TextRun(
    vocab_size=6,
    context=3,
    width=2,
    depth=1,
    heads=1,
    embedding_width=2,
    lr=0.1,
    num_steps=1,
    batch_size=1,
    init="fan-in",
    probes=ALL,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def windows(spec: TextRun, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, spec.vocab_size, (count, spec.context + 1), generator=generator)


def dense(spec: TextRun, model: torch.nn.Module, windows_WT: Tensor) -> dict[str, float]:
    """The same from dense matrices of the loss over all tokens at once, written out with torch.func."""
    named = {name: p.detach().double() for name, p in model.named_parameters()}
    flat_P = torch.cat([p.flatten() for p in named.values()])

    def logits(w_P: Tensor) -> Tensor:
        parts = torch.split(w_P, [p.numel() for p in named.values()])
        weights = {n: part.view_as(p) for (n, p), part in zip(named.items(), parts, strict=True)}
        h: Tensor = functional_call(model, weights, (windows_WT[:, :-1],))
        return h.flatten(0, -2) if h.ndim == 3 else h  # (tokens, V)

    y = windows_WT[:, -1] if spec.model == "mlp" else windows_WT[:, 1:].flatten()

    def loss(w_P: Tensor) -> Tensor:
        return functional.cross_entropy(logits(w_P), y)

    with sdpa_kernel(SDPBackend.MATH):
        jacobian_NVP = jacrev(logits)(flat_P)
        hessian_PP = jacrev(jacrev(loss))(flat_P)
        gradient_P = jacrev(loss)(flat_P)
        p_NV = logits(flat_P).softmax(dim=1)
    curvature_NVV = torch.diag_embed(p_NV) - p_NV[:, :, None] * p_NV[:, None, :]
    gauss_newton = torch.einsum("nvp,nvw,nwp->", jacobian_NVP, curvature_NVV, jacobian_NVP) / len(y)
    return {
        "hessian_trace": float(hessian_PP.trace()),
        "gauss_newton_trace": float(gauss_newton),
        "jacobian_norm": float((jacobian_NVP.square().sum() / len(y)).sqrt()),
        "gradient_norm": float(gradient_P.norm()),
    }


@pytest.mark.parametrize(
    "spec",
    [TINY, dataclasses.replace(TINY, tied=True, dropout=0.3), dataclasses.replace(TINY, model="mlp")],
    ids=["gpt", "tied, with dropout", "mlp"],
)
def test_readings_are_those_of_dense_matrices(spec: TextRun, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_text_model(spec, 1)
    windows_WT = windows(spec, 25)
    monkeypatch.setattr(text_probes, "TOKENS_PER_BATCH", 30)  # three batches, the last one shorter
    spec = dataclasses.replace(spec, probe_vectors=110)  # more than there are weights: traces are exact
    before = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    found = probe(spec, model, windows_WT)
    assert model.training
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    true = dense(spec, model.double().eval(), windows_WT)
    assert set(found) == {*true, "hessian_trace_se", "gauss_newton_trace_se", "jacobian_norm_se"}
    for name in ("hessian_trace", "gauss_newton_trace", "gradient_norm"):
        assert found[name] == pytest.approx(true[name], rel=1e-3, abs=1e-5), name
    assert (found["hessian_trace_se"], found["gauss_newton_trace_se"]) == (0, 0)
    error = found["jacobian_norm_se"]
    assert 0 < error < 0.05 * true["jacobian_norm"]
    assert abs(found["jacobian_norm"] - true["jacobian_norm"]) < 4 * error


def test_a_run_is_probed_where_it_keeps_and_at_its_end_and_is_otherwise_the_same(tmp_path: Path, corpus: Path) -> None:
    plain = dataclasses.replace(GPT, order="epochs", num_train_tokens=400, ema=(0.9,), keep_at=(10, 40), dropout=0.1)
    probed = dataclasses.replace(plain, probes=ALL, probe_windows=5, probe_vectors=6)
    without, _ = run(plain, tmp_path / "plain", corpus)
    readings, _ = run(probed, tmp_path / "probed", corpus)
    names = {"hessian_trace", "gauss_newton_trace", "jacobian_norm", "gradient_norm"}
    for one, two in zip(without, readings, strict=True):
        extra = set(two.values) - set(one.values)
        assert {name: two.values[name] for name in one.values} == one.values
        expected = (
            {f"{prefix}{name}" for prefix in ("", "ema-0.9/") for name in names} if one.step in {10, 40} else set()
        )
        assert {name for name in extra if not name.endswith("_se")} == expected
    end = readings[-1].values
    assert end["ema-0.9/hessian_trace"] != end["hessian_trace"]

    branch = TextBranch(of=probed, at=40, branch="tiny-lr", num_steps=4)
    parent = tmp_path / "probed" / "kept"
    after, _ = run(branch, tmp_path / "branch", corpus, parent=parent)
    assert [reading.step for reading in after if "hessian_trace" in reading.values] == [4]
    # From the same windows and almost the same weights; a parent's trace of other windows would be far off.
    assert after[-1].values["jacobian_norm"] == pytest.approx(end["jacobian_norm"], rel=0.2)


def test_probes_at_their_defaults_leave_the_name_of_a_run_as_it_was() -> None:
    assert not {"probes", "probe_windows", "probe_vectors"} & set(MLP.to_json())
    probed = dataclasses.replace(MLP, probes=("gradient-norm",), probe_windows=3)
    assert spec_from_json(probed.to_json()) == probed
    assert probed.digest() != MLP.digest()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"probes": ("sharpness",)}, r"probes has 'sharpness', expected some of hessian-trace, .*: change probes"),
        ({"probe_vectors": 7}, r"probe_vectors is 7, expected an even number >= 6: change probe_vectors"),
        ({"probe_vectors": 4}, r"probe_vectors is 4, expected an even number >= 6"),
        ({"probe_windows": 0}, r"probe_windows is 0, expected an integer >= 1"),
    ],
)
def test_probes_that_cannot_be_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(MLP, **change)


def test_several_processes_take_no_probes() -> None:
    parallel = DataParallelContext(torch.device("cpu"))
    parallel.size = 2
    with pytest.raises(UserError, match=r"the run has probes and 2 processes, expected one, .*: leave probes out"):
        check_probes(TINY, parallel)
    check_probes(MLP, parallel)
