"""Graphs, molecules, cells, tables and offline reinforcement learning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from probe import Built
from torch import nn


def case_graphgym() -> Iterator[Built]:
    """GraphGym of torch_geometric with its default configuration."""
    from torch_geometric.graphgym.config import cfg, set_cfg
    from torch_geometric.graphgym.optim import create_optimizer

    set_cfg(cfg)
    for option in ("adam", "sgd"):
        cfg.optim.optimizer = option
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
        optimizer = create_optimizer(model.parameters(), cfg.optim)
        configuration = f"optimizer: {option}{' (the default)' if option == 'adam' else ''}"
        documented = "L2 regularization: weight_decay = 5e-4"
        yield Built("PyG GraphGym", configuration, optimizer, [model], "torch_geometric", documented, "as documented")


def case_chemprop() -> Iterator[Built]:
    """A message-passing network with its defaults."""
    import lightning.pytorch as pl
    from chemprop import models
    from chemprop import nn as chemprop_nn

    model = models.MPNN(chemprop_nn.BondMessagePassing(), chemprop_nn.MeanAggregation(), chemprop_nn.RegressionFFN())
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=2)
    loader = torch.utils.data.DataLoader(torch.zeros(8, 1), batch_size=4)
    trainer.fit_loop.setup_data = lambda: None
    trainer.fit_loop._combined_loader = None
    model.trainer = trainer
    type(trainer).num_training_batches = property(lambda _: len(loader))  # type: ignore[method-assign, assignment]
    type(trainer).train_dataloader = property(lambda _: loader)  # type: ignore[method-assign, assignment]
    configured = model.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured[0][0]
    documented = "no weight decay is mentioned"
    yield Built("chemprop MPNN", "defaults", optimizer, [model], "chemprop", documented, "as documented")


def case_pykeen() -> Iterator[Built]:
    """The pipeline's default optimizer, on TransE and ComplEx over the packaged Nations data."""
    from pykeen.datasets import Nations
    from pykeen.pipeline import pipeline
    from pykeen.training import SLCWATrainingLoop

    loops: list[Any] = []

    class Recorded(SLCWATrainingLoop):
        """The default training loop, which keeps its optimizer."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            loops.append(self.optimizer)

    for model in ("TransE", "ComplEx"):
        result = pipeline(
            dataset=Nations(),
            model=model,
            training_loop=Recorded,
            training_kwargs={"num_epochs": 1, "use_tqdm": False},
            evaluation_kwargs={"use_tqdm": False},
            device="cpu",
        )
        made = loops.pop()
        made.state.clear()
        documented = "optimizer: Adam by default; no weight decay is mentioned"
        yield Built(
            "pykeen pipeline", f"defaults; {model}", made, [result.model], "pykeen", documented, "as documented"
        )


def case_tabnet() -> Iterator[Built]:
    """TabNetClassifier with its defaults, after a fit of no epochs."""
    from pytorch_tabnet.tab_model import TabNetClassifier

    rng = np.random.default_rng(0)
    model = TabNetClassifier(verbose=0, device_name="cpu")
    model.fit(rng.normal(size=(64, 4)), rng.integers(0, 2, 64), max_epochs=0, batch_size=32, virtual_batch_size=16)
    model._set_optimizer()
    documented = "optimizer_fn: Adam, lr=0.02"
    yield Built(
        "pytorch-tabnet", "defaults", model._optimizer, [model.network], "pytorch-tabnet", documented, "as documented"
    )


def case_d3rlpy() -> Iterator[Built]:
    """The default optimizer factory, and each factory with weight_decay=0.1."""
    from d3rlpy import optimizers

    model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 2))
    for factory, changes in (
        ("AdamFactory", {}),
        ("AdamFactory", {"weight_decay": 0.1}),
        ("SGDFactory", {"weight_decay": 0.1}),
        ("RMSpropFactory", {"weight_decay": 0.1}),
        ("AdamWFactory", {"weight_decay": 0.1}),
        ("GPTAdamWFactory", {"weight_decay": 0.1}),
    ):
        made = getattr(optimizers, factory)(**changes).create_optimizer(list(model.named_modules()), lr=3e-4)
        documented = "weight decay (L2 penalty), 0 by default"
        verdict = "l2-names" if "AdamW" in factory else "as documented"
        configuration = f"{factory}({'weight_decay=0.1' if changes else ''})"
        configuration += " (the default)" if not changes else ""
        yield Built("d3rlpy", configuration, made, [model], "d3rlpy", documented, verdict)


def case_scvi() -> Iterator[Built]:
    """SCVI's default training plan, and what PEAKVI passes to it."""
    import anndata
    from scvi.model import PEAKVI, SCVI
    from scvi.train import TrainingPlan

    plans: list[Any] = []

    class Recorded(TrainingPlan):
        """The default plan, kept when the model makes it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            plans.append(self)

    counts = np.random.default_rng(0).poisson(1.0, (50, 20)).astype(np.float32)
    for name, made in (("SCVI", SCVI), ("PEAKVI", PEAKVI)):
        data = anndata.AnnData(counts.copy())
        made.setup_anndata(data)
        model = made(data)
        model._training_plan_cls = Recorded
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        configured = plans.pop().configure_optimizers()
        documented = "weight decay used in optimization, 1e-6; Adam"
        if name == "PEAKVI":
            documented = "weight decay regularization term for optimization, 1e-3; AdamW"
        yield Built(
            f"scvi-tools {name}",
            "defaults",
            configured["optimizer"],
            [model.module],
            "scvi-tools",
            documented,
            "as documented",
        )


def case_mace() -> Iterator[Built]:
    """mace_run_train's parameter groups, on a small model with the command's defaults."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn reads its own constants
    from e3nn import o3
    from mace import modules
    from mace.tools import build_default_arg_parser
    from mace.tools.scripts_utils import get_optimizer, get_params_options

    command = build_default_arg_parser()
    for option in ("adam", "adamw"):
        args = command.parse_args(["--name=x", "--train_file=x", "--E0s=average", f"--optimizer={option}"])
        model = modules.ScaleShiftMACE(
            r_max=5.0,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            num_interactions=2,
            num_elements=2,
            hidden_irreps=o3.Irreps("8x0e + 8x1o"),
            MLP_irreps=o3.Irreps("8x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.zeros(2),
            avg_num_neighbors=8.0,
            atomic_numbers=[1, 8],
            correlation=2,
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        )
        optimizer = get_optimizer(args, get_params_options(args, model))
        verdict = "l2-names" if option == "adamw" else "as documented"
        configuration = f"--optimizer={option}{' (the default)' if option == 'adam' else ''}"
        documented = "--weight_decay: weight decay (L2 penalty), 5e-7"
        yield Built("mace", configuration, optimizer, [model], "mace-torch", documented, verdict)


def case_tianshou() -> Iterator[Built]:
    """The two optimizer factories that its algorithms use."""
    from tianshou.algorithm.optim import AdamOptimizerFactory, RMSpropOptimizerFactory

    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    for made in (AdamOptimizerFactory, RMSpropOptimizerFactory):
        optimizer, _ = made().create_instances(model)
        documented = "weight_decay: 0 in the signature"
        yield Built("tianshou", f"{made.__name__}()", optimizer, [model], "tianshou", documented, "as documented")
