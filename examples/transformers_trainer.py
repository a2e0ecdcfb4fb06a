"""The Trainer of transformers: see what it decays, choose other groups, attach a rule, and keep it so with a test.

The traps: `weight_decay` is 0 unless you set it; with it, embeddings decay, and so do norms whose names do not look like one.
"""

import tempfile
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import halflife

DATA = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(32)]


def make_model() -> LlamaForCausalLM:
    """Build a Llama in miniature, with random weights."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, pad_token_id=0, **size))


def make_trainer(model: LlamaForCausalLM, folder: str, **more: Any) -> Trainer:
    """Build the Trainer as a script would."""
    quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(
        folder, learning_rate=1e-3, weight_decay=0.1, num_train_epochs=1, gradient_accumulation_steps=2, **quiet
    )
    return Trainer(model, arguments, train_dataset=DATA, **more)


def make_optimizer(model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, halflife.Handle]:
    """Choose what decays, and by which rule; the Trainer takes the optimizer and makes its own scheduler for it."""
    optimizer = torch.optim.AdamW(halflife.param_groups(model, policy="matrices", weight_decay=0.1), lr=1e-3)
    return optimizer, halflife.attach(optimizer, halflife.HalfLife(steps=1000))


def test_decay() -> None:
    """Hold in every run of the tests: matrices decay by the rule, embeddings and norms do not."""
    model = make_model()
    optimizer, _ = make_optimizer(model)
    halflife.assert_decay(model, optimizer, {"matrices": "half-life:1000", "*": "none"})


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model()
        usual = make_trainer(model, folder).create_optimizer()
        print("what the Trainer makes:", [warning.code for warning in halflife.explain(model, usual).warnings])
        optimizer, handle = make_optimizer(model)
        trainer = make_trainer(model, folder, optimizers=(optimizer, None))
        trainer.train()
    print(f"removed by the last of {trainer.state.global_step} steps: {handle.fractions()}")
    assert abs(handle.fractions()[0] - (1 - 0.5 ** (1 / 1000))) < 1e-9
    assert handle.fractions()[1] == 0.0
    test_decay()
