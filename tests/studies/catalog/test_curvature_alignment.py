"""The study of curvature and noise: rules on made-up numbers, presets, readings against exact matrices, a smoke run."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from halflife.studies.catalog import get_study
from halflife.studies.catalog.curvature.alignment import quantities
from halflife.studies.catalog.curvature.alignment.study import CURVATURE_ALIGNMENT
from halflife.studies.evidence.claims import HeatPanel, PointsPanel
from halflife.studies.evidence.readings import unpacked
from halflife.studies.evidence.results import Results
from halflife.studies.lab.images.data import image_tensors, noisy_labels
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.images.state import start_from
from halflife.studies.lab.trainer import train
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.images import ImageRun
from halflife.studies.store.records import Reading
from tests.studies.smoke_in_process import smoke_results

NUM_SEEDS, SIZE = 4, 8
CLAIMS = {claim.key: claim for claim in CURVATURE_ALIGNMENT.claims}
When = str
"""``"start"`` or ``"end"``."""

# What is true where every claim holds: (arm or "", when or "", pair) to a cosine; the most exact key counts.
TRUE: dict[tuple[str, When, str], float] = {
    ("", "", "hessian-covariance"): 0.84,
    ("", "", "gauss-newton-covariance"): 0.97,
    ("", "", "residual-covariance"): 0.024,
    ("", "", "gauss-newton-residual"): 0.021,
    ("", "", "hessian-residual"): 0.51,
    **{(f"{model}-noise", "end", "hessian-covariance"): 0.95 for model in quantities.MODELS},
}
RANKS = np.arange(1, 65)


class MadeUp:
    """Results of the laptop preset with given cosines, and spectra with and without decoupling; seeds vary a little."""

    def __init__(
        self,
        cosines: Mapping[tuple[str, When, str], float] | None = None,
        decoupled: Mapping[str, NDArray[np.float64]] | None = None,
        jitter: float = 0.01,
    ) -> None:
        self.cosines, self.decoupled, self.jitter = TRUE | dict(cosines or {}), dict(decoupled or {}), jitter
        preset = CURVATURE_ALIGNMENT.presets["laptop"]
        self.arms = [{"key": arm.key, "size": arm.size} for arm in preset.arms]
        self.built = {arm.key: arm.build(0) for arm in preset.arms}

    def spec(self, key: str, size: int) -> RunSpec:
        return self.built[key]

    def _noise(self, name: str) -> NDArray[np.float64]:
        noise = np.random.default_rng(zlib.crc32(name.encode())).normal(0, 1, NUM_SEEDS)
        return np.asarray(self.jitter * (noise - noise.mean()))

    def _cosine(self, key: str, metric: str, when: When) -> NDArray[np.float64]:
        pair = metric.removeprefix("cos/")
        for place in ((key, when, pair), ("", when, pair), ("", "", pair)):
            if place in self.cosines:
                return np.asarray(self.cosines[place] + self._noise(f"{key} {metric} {when}"))
        raise KeyError(metric)

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(
        self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        assert (epoch, step) in {(1, None), (None, None)}
        if name.startswith("cos/"):
            return self._cosine(key, name, "end" if epoch is None else "start")
        true_L = 5 * RANKS**-1.2
        if name == "spectrum/decoupled":
            true_L = true_L * self.decoupled.get(key, np.full(64, 1.1))
        return np.asarray(true_L * np.exp(self._noise(f"{key} {name}"))[:, None])


FIRST = quantities.MODELS[0]
EVEN = np.where(RANKS % 2, 3.0, 1 / 3.0)  # a factor of 3 at every rank, up and down in turn
TAIL = np.where(RANKS <= 2, 1.0, 2.5)  # the head, most of the sum, is kept
CASES: list[tuple[str, dict[str, object], float, str, float]] = [
    ("gauss-newton", {}, 0.01, "reproduced", 0.97),
    ("gauss-newton", {"cosines": {(FIRST, "start", "gauss-newton-covariance"): 0.7}}, 0.01, "not reproduced", 0.7),
    ("gauss-newton", {"cosines": {(FIRST, "start", "gauss-newton-covariance"): 0.8}}, 0.01, "undecided", 0.8),
    # What others do, or what is so at the end, does not count.
    ("gauss-newton", {"cosines": {("resnet", "start", "gauss-newton-covariance"): 0.1,
                       (FIRST, "end", "gauss-newton-covariance"): 0.1}}, 0.01, "reproduced", 0.97),
    ("hessian", {}, 0.01, "reproduced", 0.84),
    ("hessian", {"cosines": {(FIRST, "start", "hessian-covariance"): 0.4}}, 0.01, "not reproduced", 0.4),
    ("hessian", {"cosines": {(FIRST, "start", "hessian-covariance"): 0.5}}, 0.01, "undecided", 0.5),
    ("rest-orthogonal", {}, 0.01, "reproduced", 0.024),
    ("rest-orthogonal", {"cosines": {(FIRST, "start", "residual-covariance"): -0.3}}, 0.01, "not reproduced", -0.3),
    ("rest-orthogonal", {"cosines": {(FIRST, "start", "gauss-newton-residual"): 0.3}}, 0.01, "not reproduced", 0.3),
    ("rest-orthogonal", {"cosines": {(FIRST, "start", "gauss-newton-residual"): 0.2}}, 0.01, "undecided", 0.2),
    ("rest-part", {}, 0.01, "reproduced", 0.51),
    ("rest-part", {"cosines": {("", "", "hessian-residual"): 0.1}}, 0.01, "not reproduced", 0.1),
    ("rest-part", {"cosines": {("", "", "hessian-residual"): 0.25}}, 0.01, "undecided", 0.25),
    ("closer", {}, 0.01, "reproduced", 0.13),
    ("closer", {"cosines": {(FIRST, "start", "hessian-covariance"): 0.99}}, 0.001, "not reproduced", -0.02),
    ("closer", {"cosines": {(FIRST, "start", "hessian-covariance"): 0.97}}, 0.01, "undecided", 0.0),
    ("other-nets", {}, 0.01, "reproduced", 0.84),
    ("other-nets", {"cosines": {("mlp", "start", "hessian-covariance"): 0.3}}, 0.01, "not reproduced", 0.3),
    ("other-nets", {"cosines": {("resnet", "start", "hessian-covariance"): 0.5}}, 0.01, "undecided", 0.5),
    ("at-end", {}, 0.01, "reproduced", 0.84),
    ("at-end", {"cosines": {("resnet", "end", "hessian-covariance"): 0.3}}, 0.01, "not reproduced", 0.3),
    ("at-end", {"cosines": {(FIRST, "end", "hessian-covariance"): 0.5}}, 0.01, "undecided", 0.5),
    ("label-noise", {}, 0.01, "reproduced", 0.11),
    ("label-noise", {"cosines": {("mlp-noise", "end", "hessian-covariance"): 0.7}}, 0.01, "not reproduced", -0.14),
    ("label-noise", {"cosines": {("mlp-noise", "end", "hessian-covariance"): 0.84}}, 0.01, "undecided", 0.0),
    ("label-noise-match", {}, 0.01, "reproduced", 0.95),
    ("label-noise-match", {"cosines": {("resnet-noise", "end", "hessian-covariance"): 0.7}}, 0.01, "not reproduced", 0.7),
    ("label-noise-match", {"cosines": {("resnet-noise", "end", "hessian-covariance"): 0.8}}, 0.01, "undecided", 0.8),
    ("spectra", {}, 0.01, "reproduced", 0.1),
    ("spectra", {"decoupled": {"cell-1-0": np.full(64, 1.6)}}, 0.01, "not reproduced", 0.6),
    ("spectra", {"decoupled": {"cell-0-1": np.full(64, 0.75)}}, 0.01, "undecided", 0.25),
    ("spectra-log", {}, 0.01, "reproduced", 1.1),
    ("spectra-log", {"decoupled": {"cell-1-1": EVEN}}, 0.01, "not reproduced", 3.0),
    # 0.9 of the 20 ranks at a factor of 2.5: in the mean of logarithms 2.28.
    ("spectra-log", {"decoupled": {"cell-0-0": TAIL}}, 0.01, "not reproduced", 2.5**0.9),
    ("spectra-log", {"decoupled": {"cell-0-0": np.full(64, 2.0)}}, 0.01, "undecided", 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("key", "given", "jitter", "outcome", "effect"), CASES)
def test_a_rule_decides_what_it_should(
    key: str, given: dict[str, object], jitter: float, outcome: str, effect: float
) -> None:
    made = MadeUp(jitter=jitter, **given)  # type: ignore[arg-type]
    finding = CLAIMS[key].decide(cast("Results", made), SIZE)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    # The noise of a cosine has mean 0; of a distance it has not.
    near = 1e-9 if not key.startswith("spectra") else 0.03
    assert finding.effect.estimate == pytest.approx(effect, abs=near)


def test_every_claim_is_tried_with_all_three_outcomes() -> None:
    tried = {(key, outcome) for key, _, _, outcome, _ in CASES}
    assert tried == {(key, outcome) for key in CLAIMS for outcome in ("reproduced", "not reproduced", "undecided")}


def test_a_rest_that_is_no_part_of_the_hessian_is_orthogonal_to_nothing() -> None:
    finding = CLAIMS["rest-orthogonal"].decide(cast("Results", MadeUp({("", "", "hessian-residual"): 0.1})), SIZE)
    assert finding.outcome == "not tested"
    assert "what is at stake does not hold: cosine of the Hessian and its rest" in finding.reason


def test_a_spectrum_of_zeros_is_not_compared() -> None:
    made = MadeUp(decoupled={"cell-0-0": np.zeros(64)})
    finding = CLAIMS["spectra"].decide(cast("Results", made), SIZE)
    assert (finding.outcome, finding.reason) == ("not tested", "no eigenvalue is above 0 in every seed")


@pytest.mark.parametrize("name", ["smoke", "laptop", "night", "paper"])
def test_presets_probe_after_the_first_epoch_and_at_the_end_at_one_rate(name: str) -> None:
    preset = CURVATURE_ALIGNMENT.presets[name]
    for arm in preset.arms:
        spec = arm.build(3)
        assert isinstance(spec, ImageRun)
        assert (spec.drop_epoch, spec.lr_after_drop, spec.probes) == (1, spec.lr, ("alignment",))
        assert spec.label_noise == (0.3 if arm.key.endswith("-noise") else 0.0)
        assert not spec.fresh_label_noise  # the probe must see the labels that the run trains on
    if name in {"laptop", "night"}:
        built = {arm.key: arm.build(3) for arm in preset.arms if arm.size == preset.main_size}
        assert built["cell-0-1"] == built["resnet"]  # one run, two arms
        cells = {(s.lr, s.lam) for key, s in built.items() if key.startswith("cell") and isinstance(s, ImageRun)}
        assert len(cells) == 4
        first = built["scale-invariant"]
        assert isinstance(first, ImageRun)
        assert first.lr * 2_000 / first.batch_size == pytest.approx(0.005 * 391, rel=0.05)


def exact_matrices(
    net: torch.nn.Module, x_N: Tensor, y_N: Tensor
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """H, G, E and Sigma of a net, example by example, and the decoupled covariance."""
    net = net.double()
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    flat = torch.cat([p.flatten() for p in weights.values()])

    def logits_of(v_P: Tensor) -> Tensor:
        parts = torch.split(v_P, [p.numel() for p in weights.values()])
        named = {name: part.view_as(p) for (name, p), part in zip(weights.items(), parts, strict=True)}
        return cast("Tensor", torch.func.functional_call(net, named, (x_N,)))

    def loss_of(v_P: Tensor) -> Tensor:
        return functional.cross_entropy(logits_of(v_P), y_N)

    hessian = torch.func.hessian(loss_of)(flat)
    gauss_newton, gradients, squares, outer = torch.zeros_like(hessian), [], 0.0, torch.zeros_like(hessian)
    for jacobian_KP, logits_K, y in zip(torch.func.jacrev(logits_of)(flat), logits_of(flat), y_N, strict=True):
        p_K = logits_K.softmax(dim=0)
        residual_K = p_K - functional.one_hot(y, len(p_K))
        gauss_newton += jacobian_KP.T @ (torch.diag(p_K) - torch.outer(p_K, p_K)) @ jacobian_KP / len(x_N)
        gradients.append(residual_K @ jacobian_KP)
        squares += float(residual_K.square().sum()) / len(x_N) / len(p_K)
        outer += jacobian_KP.T @ jacobian_KP / len(x_N)
    away_NP = torch.stack(gradients) - torch.stack(gradients).mean(dim=0)
    found = {
        "hessian": hessian,
        "gauss-newton": gauss_newton,
        "residual": hessian - gauss_newton,
        "covariance": away_NP.T @ away_NP / len(x_N),
    }
    return {name: matrix.numpy() for name, matrix in found.items()}, np.asarray((squares * outer).numpy())


def test_readings_of_a_run_are_those_of_its_exact_matrices(tmp_path: Path) -> None:
    """An MLP of 490 weights: cosines within their sampling error, and not far from those of Frobenius; exact spectra."""
    arm = next(arm for arm in CURVATURE_ALIGNMENT.presets["laptop"].arms if arm.key == "mlp-noise")
    built = arm.build(1007)
    assert isinstance(built, ImageRun)
    spec = replace(
        built, width=8, num_train=100, num_epochs=10, drop_at=0.1, keep_at=(10,), probe_examples=40, probe_vectors=60
    )
    readings: list[Reading] = []
    train(spec, sink=readings.append, folder=tmp_path)
    net = build_model("mlp", width=8, blocks=(1,), in_channels=1, num_classes=10, seed=0, image_size=(7, 7))
    start_from(tmp_path / "kept" / "epoch-10.safetensors", "last", net, run=spec.digest())
    assert sum(p.numel() for p in net.parameters()) == 490
    images, _ = image_tensors(
        read_source(spec.data), num_train=100, num_test=1, downsample=4, device=torch.device("cpu")
    )
    labels_N = noisy_labels(images.y_N, 0.3, 10, seed=1007, epoch=None)
    assert (labels_N != images.y_N)[:40].any()  # or the labels that the probe sees would not matter
    matrices, decoupled = exact_matrices(net, images.x_NCHW[:40].double(), labels_N[:40])
    last = readings[-1]
    v_PV = np.random.default_rng(0).standard_normal((490, 4_000))
    for pair in quantities.PAIRS:
        one, other = next((a, b) for a in matrices for b in matrices if pair == f"{a}-{b}")
        a_PV, b_PV = matrices[one] @ v_PV, matrices[other] @ v_PV
        cosines_V = (a_PV * b_PV).sum(axis=0) / np.linalg.norm(a_PV, axis=0) / np.linalg.norm(b_PV, axis=0)
        found = last.values[f"cos/{pair}"]
        assert abs(found - cosines_V.mean()) < 4 * cosines_V.std() * (1 / 60 + 1 / 4_000) ** 0.5
        frobenius = (matrices[one] * matrices[other]).sum()
        frobenius /= np.linalg.norm(matrices[one]) * np.linalg.norm(matrices[other])
        assert found == pytest.approx(frobenius, abs=0.15)
    for name, matrix in (("covariance", matrices["covariance"]), ("decoupled", decoupled)):
        exact = np.linalg.eigvalsh(matrix)[::-1][: quantities.TOP]
        np.testing.assert_allclose(unpacked(last.arrays[f"spectrum/{name}"])[: quantities.TOP], exact, rtol=1e-3)


def test_the_smoke_preset_runs_decides_nothing_and_is_drawn(tmp_path: Path) -> None:
    results = smoke_results(tmp_path, get_study("curvature-alignment"))
    assert {verdict.finding.outcome for verdict in results.verdicts()} == {"not tested"}
    assert results.num_planned == 14  # the ResNet is a cell of the grid, too
    for panel in CURVATURE_ALIGNMENT.panels:
        assert isinstance(panel, HeatPanel | PointsPanel)
        assert panel.cells(results) if isinstance(panel, HeatPanel) else panel.rows(results)
    assert all(row.ours(results) for row in CURVATURE_ALIGNMENT.published)
