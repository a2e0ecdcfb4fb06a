"""Forecasting and tabular trainers: darts, neuralforecast, pytorch-forecasting, gluonts, pytorch-tabular."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from probe import Built


def first(configured: Any) -> Any:
    """The optimizer out of what a LightningModule's configure_optimizers returns."""
    if isinstance(configured, dict):
        return first(configured["optimizer"])
    if isinstance(configured, list | tuple):
        return first(configured[0])
    return configured


def case_darts() -> Iterator[Built]:
    """Three models, after a fit of one step: the optimizer is made by their own configure_optimizers."""
    from darts import TimeSeries
    from darts.models import NBEATSModel, TFTModel, TransformerModel

    series = TimeSeries.from_values(np.sin(np.arange(60.0)).astype(np.float32))
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "max_steps": 1}
    common = {"input_chunk_length": 8, "output_chunk_length": 2, "n_epochs": 1, "pl_trainer_kwargs": trainer}
    for made, changes in (
        (NBEATSModel, {"layer_widths": 16, "num_stacks": 2}),
        (TransformerModel, {"d_model": 16, "nhead": 2, "dim_feedforward": 16}),
        (TFTModel, {"add_relative_index": True, "hidden_size": 8}),
    ):
        model = made(**common, **changes)
        model.fit(series, verbose=False)
        optimizer = first(model.model.configure_optimizers())
        name = f"darts {made.__name__}"
        documented = "optimizer_cls: torch.optim.Adam by default; no weight decay is mentioned"
        yield Built(name, "defaults", optimizer, [model.model], "darts", documented, "as documented")


def case_neuralforecast() -> Iterator[Built]:
    """Two models with their defaults."""
    from neuralforecast.models import NHITS, PatchTST

    for made in (NHITS, PatchTST):
        model = made(h=2, input_size=8, max_steps=10)
        optimizer = first(model.configure_optimizers())
        name = f"neuralforecast {made.__name__}"
        documented = "optimizer: Adam by default; no weight decay is mentioned"
        yield Built(name, "defaults", optimizer, [model], "neuralforecast", documented, "as documented")


def case_pytorch_forecasting() -> Iterator[Built]:
    """N-BEATS and N-HiTS, whose default decay is not 0, and the temporal fusion transformer."""
    from pytorch_forecasting import NBeats, NHiTS, TemporalFusionTransformer, TimeSeriesDataSet

    frame = pd.DataFrame({"t": np.tile(np.arange(40), 2), "group": np.repeat(["a", "b"], 40)})
    frame["value"] = np.sin(frame["t"].astype(float))
    data = TimeSeriesDataSet(
        frame,
        time_idx="t",
        target="value",
        group_ids=["group"],
        max_encoder_length=8,
        min_encoder_length=8,
        max_prediction_length=2,
        time_varying_unknown_reals=["value"],
    )
    package = "pytorch-forecasting"
    for made, documented in (
        (NBeats, "Weight decay (L2 regularization), default 1e-3"),
        (NHiTS, "weight_decay 1e-3 in the signature"),
        (TemporalFusionTransformer, "weight decay, defaults to 0.0"),
    ):
        model = made.from_dataset(data)
        optimizer = first(model.configure_optimizers())
        name = f"pytorch-forecasting {made.__name__}"
        yield Built(name, "from_dataset, defaults", optimizer, [model], package, documented, "as documented")
    for option in ("sgd", "adam", "adamw", "Adagrad", "RMSprop", "Rprop"):
        model = NBeats.from_dataset(data, optimizer=option, weight_decay=0.1)
        optimizer = first(model.configure_optimizers())
        verdict = "pytorch-forecasting-rprop" if option == "Rprop" else "as documented"
        if option == "adamw":
            verdict = "l2-names"
        name = "pytorch-forecasting NBeats"
        documented = "Weight decay (L2 regularization)"
        configuration = f"optimizer={option!r}, weight_decay=0.1"
        yield Built(name, configuration, optimizer, [model], package, documented, verdict)


def case_gluonts() -> Iterator[Built]:
    """Two estimators with their defaults; the Lightning module is made by the estimator."""
    import lightning.pytorch as pl
    from gluonts.torch import DeepAREstimator, SimpleFeedForwardEstimator

    for made, changes in (
        (DeepAREstimator, {"freq": "D", "prediction_length": 2}),
        (SimpleFeedForwardEstimator, {"prediction_length": 2}),
    ):
        module = made(**changes).create_lightning_module()
        module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        module.trainer.fit_loop._data_source.instance = None
        optimizer = first(module.configure_optimizers())
        name = f"gluonts {made.__name__}"
        documented = "Weight decay regularization parameter (default: 1e-8)"
        yield Built(name, "defaults", optimizer, [module], "gluonts", documented, "as documented")


def case_pytorch_tabular() -> Iterator[Built]:
    """A tabular model with the default OptimizerConfig."""
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig, FTTransformerConfig

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=64), "c": rng.choice(["x", "y"], 64), "y": rng.integers(0, 2, 64)})
    for config in (CategoryEmbeddingModelConfig, FTTransformerConfig):
        table = TabularModel(
            data_config=DataConfig(target=["y"], continuous_cols=["a"], categorical_cols=["c"]),
            model_config=config(task="classification"),
            optimizer_config=OptimizerConfig(),
            trainer_config=TrainerConfig(accelerator="cpu", checkpoints=None, load_best=False, progress_bar="none"),
            verbose=False,
        )
        data = table.prepare_dataloader(train=frame, validation=frame, seed=0)
        model = table.prepare_model(data)
        optimizer = first(model.configure_optimizers())
        name = f"pytorch-tabular {config.__name__.removesuffix('Config')}"
        documented = "OptimizerConfig: Adam, no parameters"
        yield Built(name, "defaults", optimizer, [model], "pytorch-tabular", documented, "as documented")


torch.set_num_threads(1)
