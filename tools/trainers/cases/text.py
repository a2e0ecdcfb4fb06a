"""flair, litgpt, torchtune."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from probe import Built


def case_flair() -> Iterator[Built]:
    """The methods train and fine_tune with their defaults, stopped as soon as the optimizer is there."""
    from flair.data import Corpus, Dictionary, Sentence
    from flair.datasets import FlairDatapointDataset
    from flair.embeddings import DocumentRNNEmbeddings, OneHotEmbeddings
    from flair.models import TextClassifier
    from flair.optim import SGDW
    from flair.trainers import ModelTrainer
    from flair.trainers.plugins import TrainerPlugin

    class Stop(Exception):
        """Raised once the optimizer is there."""

    class Capture(TrainerPlugin):
        """Keeps the trainer's optimizer."""

        @TrainerPlugin.hook
        def after_setup(self, **_: Any) -> None:
            optimizers.append(self.trainer.optimizer)
            raise Stop

    sentences = [Sentence("a b c").add_label("class", "x") and Sentence("a b c") for _ in range(4)]
    for number, sentence in enumerate(sentences):
        sentence.add_label("class", "xy"[number % 2])
    corpus = Corpus(*(FlairDatapointDataset(sentences) for _ in range(3)))
    labels = Dictionary(add_unk=False)
    for label in "xy":
        labels.add_item(label)
    for method in ("train", "fine_tune"):
        words = OneHotEmbeddings.from_corpus(corpus, min_freq=1, embedding_length=16)
        model = TextClassifier(
            DocumentRNNEmbeddings([words], hidden_size=16), label_type="class", label_dictionary=labels
        )
        optimizers: list[Any] = []
        try:
            with tempfile.TemporaryDirectory() as folder:
                getattr(ModelTrainer(model, corpus), method)(folder, plugins=[Capture()])
        except Stop:
            pass
        documented = "no weight decay is mentioned"
        name = f"flair ModelTrainer.{method}"
        verdict = "as documented" if method == "train" else "not documented"
        yield Built(name, "defaults; an RNN classifier", optimizers[0], [model], "flair", documented, verdict)
    layer = torch.nn.Linear(6, 4)
    made = SGDW(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-5)
    documented = "SGD with weight decay, from Fixing Weight Decay Regularization in Adam"
    configuration = "SGDW(lr=0.1, momentum=0.9, weight_decay=1e-5), as in its docstring"
    yield Built("flair SGDW", configuration, made, [layer], "flair", documented, "as documented")


def case_litgpt() -> Iterator[Built]:
    """What finetune and pretrain make of their default `optimizer="AdamW"`."""
    from litgpt import GPT, Config
    from litgpt.utils import instantiate_torch_optimizer

    for command, extra in (("finetune full", {}), ("pretrain", {"fused": False})):
        model = GPT(Config.from_name("pythia-14m", n_layer=2))
        optimizer = instantiate_torch_optimizer("AdamW", model.parameters(), **extra)
        name = f"litgpt {command}"
        documented = 'optimizer: an optimizer name (such as "AdamW") or config'
        configuration = 'optimizer="AdamW" (the default); pythia-14m, 2 layers'
        yield Built(name, configuration, optimizer, [model], "litgpt", documented, "not documented")


def case_torchtune() -> Iterator[Built]:
    """The optimizers of two recipes' configurations, on small models of the same kind."""
    import torchtune
    from omegaconf import OmegaConf
    from torchtune import config
    from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    size: dict[str, Any] = {
        "vocab_size": 100,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "embed_dim": 32,
        "max_seq_len": 64,
        "intermediate_dim": 64,
    }
    folder = Path(torchtune.__file__).parents[1] / "recipes" / "configs" / "llama3_2"
    for recipe in ("1B_lora_single_device", "1B_full"):
        settings = OmegaConf.load(folder / f"{recipe}.yaml")
        if "lora" in recipe:
            model = lora_llama3_2(list(settings.model.lora_attn_modules), lora_rank=4, lora_alpha=8.0, **size)
            set_trainable_params(model, get_adapter_params(model))
        else:
            model = llama3_2(**size)
        optimizer = config.instantiate(settings.optimizer, model.parameters())
        explicit = settings.optimizer.get("weight_decay")
        documented = f"weight_decay: {explicit}" if explicit is not None else "no weight decay is mentioned"
        verdict = "as documented" if explicit is not None else "not documented"
        name = f"torchtune llama3_2/{recipe}"
        yield Built(name, "the recipe's configuration", optimizer, [model], "torchtune", documented, verdict)
