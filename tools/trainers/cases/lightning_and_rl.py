"""Lightning's own demos and command line, stable-baselines3, skorch, keras on torch."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from probe import Built, half_life, twins
from torch import nn


def case_lightning() -> Iterator[Built]:
    """What the demo modules of Lightning configure, and an optimizer that its command line makes."""
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos import LightningTransformer
    from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel
    from lightning.pytorch.demos.lstm import SequenceSampler  # noqa: F401  (the module imports)

    documented = "no weight decay is mentioned"
    name = "Lightning demo"
    module: Any = LightningTransformer(vocab_size=100)
    yield Built(
        name, "LightningTransformer", module.configure_optimizers(), [module], "lightning", documented, "as documented"
    )
    module = BoringModel()
    made = module.configure_optimizers()[0][0]
    yield Built(name, "BoringModel", made, [module], "lightning", documented, "as documented")
    module = DemoModel()
    yield Built(name, "DemoModel", module.configure_optimizers(), [module], "lightning", documented, "as documented")

    class Plain(BoringModel):
        """A module that leaves the optimizer to the command line."""

    Plain.configure_optimizers = LightningCLI.configure_optimizers  # type: ignore[assignment]
    for optimizer in ("Adam", "AdamW"):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            cli = LightningCLI(
                Plain,
                run=False,
                args=[f"--optimizer={optimizer}"],
                save_config_callback=None,
                trainer_defaults={"logger": False, "accelerator": "cpu"},
            )
            cli._add_configure_optimizers_method_to_model(None)
            made = cli.model.configure_optimizers()
            yield Built(
                "LightningCLI",
                f"--optimizer={optimizer}",
                made,
                [cli.model],
                "lightning",
                "torch's defaults",
                "as documented",
            )
            os.chdir("/")


def case_stable_baselines3() -> Iterator[Built]:
    """The default policies of six algorithms."""
    import stable_baselines3 as sb3

    discrete, continuous = "CartPole-v1", "Pendulum-v1"
    package = "stable-baselines3"
    for name, env in (("PPO", discrete), ("A2C", discrete), ("DQN", discrete)):
        model = getattr(sb3, name)("MlpPolicy", env, device="cpu")
        trained = model.policy.q_net if name == "DQN" else model.policy
        yield Built(
            f"stable-baselines3 {name}",
            "defaults; MlpPolicy",
            model.policy.optimizer,
            [trained],
            package,
            "no weight decay is mentioned",
            "as documented",
        )
    for name in ("SAC", "TD3", "DDPG"):
        model = getattr(sb3, name)("MlpPolicy", continuous, device="cpu")
        for part in ("actor", "critic"):
            trained = getattr(model, part)
            yield Built(
                f"stable-baselines3 {name}",
                f"defaults; MlpPolicy, {part}",
                trained.optimizer,
                [trained],
                package,
                "no weight decay is mentioned",
                "as documented",
            )
    changes = {"optimizer_kwargs": {"weight_decay": 0.1}}
    for name in ("PPO", "A2C"):
        model = getattr(sb3, name)("MlpPolicy", discrete, device="cpu", policy_kwargs=dict(changes))
        yield Built(
            f"stable-baselines3 {name}",
            "policy_kwargs={'optimizer_kwargs': {'weight_decay': 0.1}}",
            model.policy.optimizer,
            [model.policy],
            package,
            "optimizer_kwargs: further arguments of the optimizer",
            "sb3-a2c" if name == "A2C" else "as documented",
        )


def case_skorch() -> Iterator[Built]:
    """NeuralNetClassifier with its defaults, and with an argument handed to the optimizer."""
    from skorch import NeuralNetClassifier

    for configuration, changes, documented in (
        ("defaults", {}, "SGD, lr=0.01"),
        ("optimizer__weight_decay=0.1", {"optimizer__weight_decay": 0.1}, "optimizer__ arguments reach the optimizer"),
    ):
        net = NeuralNetClassifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), **changes)
        net.initialize()
        yield Built(
            "skorch NeuralNetClassifier",
            configuration,
            net.optimizer_,
            [net.module_],
            "skorch",
            documented,
            "as documented",
        )


def case_keras() -> Iterator[dict[str, Any]]:
    """Optimizers of keras on torch: no torch optimizer, so the law is found from the difference that the decay makes."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.config.set_floatx("float64")

    def make(name: str) -> Any:
        def step(w: torch.Tensor, gradients: list[torch.Tensor], lr: float, lam: float) -> torch.Tensor:
            variable = keras.Variable(w.numpy())
            optimizer = getattr(keras.optimizers, name)(learning_rate=lr, weight_decay=lam)
            for gradient in gradients:
                optimizer.apply([gradient], [variable])
            return torch.as_tensor(variable.value).detach().clone()

        return step

    for name in ("AdamW", "Adam", "SGD"):
        found = twins(make(name))
        default = getattr(keras.optimizers, name)()
        lr, lam = float(default.learning_rate), default.weight_decay
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(8), keras.layers.LayerNormalization(), keras.layers.Dense(2)]
        )
        default.build(model.trainable_variables)
        counts: dict[str, list[int]] = {}
        for variable in model.trainable_variables:
            assert default._use_weight_decay(variable)  # keras leaves nothing out unless told to
            kind = "biases" if variable.path.endswith("bias") else "matrices"
            entry = counts.setdefault("norms" if "normalization" in variable.path else kind, [0, 0])
            entry[0] += 1
            entry[1] += math.prod(variable.shape)
        fraction = lr * lam if lam else 0.0
        assert abs(found["fraction"] - found["lr"] * found["weight_decay"]) < 1e-9
        law = f"{found['pathway']}: r = lr * lam (from two runs that differ in weight decay)"
        group = {
            "group": 0,
            "lr": lr,
            "weight_decay": lam,
            "counts": counts,
            "pathway": found["pathway"] if lam else "none",
            "law": law if lam else "none: nothing decays",
            "equivalent_to": None,
            "fraction": fraction,
            "half_life": half_life(fraction),
            "notes": [],
            "check": {"kind": "two runs", **found},
            "agrees": None,
        }
        yield {
            "trainer": "keras (torch backend)",
            "configuration": f"optimizers.{name}(), defaults",
            "package": "keras",
            "documented": "decoupled, on all variables" if name == "AdamW" else "weight_decay: if set, is applied",
            "verdict": "as documented",
            "option": "",
            "optimizer": f"keras.optimizers.{name}",
            "groups": [group],
            "in_no_group": {},
        }
