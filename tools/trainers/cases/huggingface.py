"""transformers, peft, trl, sentence-transformers, setfit and accelerate, on small models built from configurations."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from probe import Built
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

FOLDER = tempfile.mkdtemp()
SMALL_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 120,
}
SMALL_LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 120,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def bert() -> BertForSequenceClassification:
    """BERT with two small layers."""
    return BertForSequenceClassification(BertConfig(**SMALL_BERT))


def llama() -> LlamaForCausalLM:
    """Llama with two small layers."""
    return LlamaForCausalLM(LlamaConfig(**SMALL_LLAMA))


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few words, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(100))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad": "[PAD]", "bos": "[BOS]", "eos": "[EOS]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    special = {f"{key}_token": value for key, value in names.items()}
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **special)


def arguments(**changes: Any) -> TrainingArguments:
    """TrainingArguments on the CPU, otherwise with the defaults."""
    return TrainingArguments(output_dir=FOLDER, use_cpu=True, report_to=[], **changes)


def case_transformers() -> Iterator[Built]:
    """Trainer with its default, and with weight_decay=0.1 on two models."""
    rows: list[tuple[str, Any, dict[str, Any], str, str]] = [
        ("defaults; BERT", bert, {}, "weight_decay defaults to 0", "as documented"),
        (
            "weight_decay=0.1; BERT",
            bert,
            {"weight_decay": 0.1},
            "excluded from bias and LayerNorm parameters",
            "as documented",
        ),
        (
            "weight_decay=0.1; Llama",
            llama,
            {"weight_decay": 0.1},
            "excluded from bias and LayerNorm parameters",
            "as documented",
        ),
    ]
    for configuration, make, changes, documented, verdict in rows:
        model = make()
        trainer = Trainer(model=model, args=arguments(**changes))
        optimizer = trainer.create_optimizer()
        yield Built("transformers Trainer", configuration, optimizer, [model], "transformers", documented, verdict)


def case_peft() -> Iterator[Built]:
    """LoRA under the Trainer; the optimizers that peft itself offers."""
    from peft import LoraConfig, TaskType, get_peft_model
    from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

    def lora() -> Any:
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=8, target_modules=["query", "value"])
        return get_peft_model(bert(), config)

    model = lora()
    trainer = Trainer(model=model, args=arguments(weight_decay=0.1))
    documented = "excluded from bias and LayerNorm parameters"
    configuration = "LoraConfig(r=4) on BERT, weight_decay=0.1"
    optimizer = trainer.create_optimizer()
    yield Built("peft LoRA + Trainer", configuration, optimizer, [model], "peft", documented, "as documented")
    model = lora()
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16, weight_decay=0.1)
    documented = "further arguments go to the optimizer"
    yield Built("peft LoRA+", "weight_decay=0.1", optimizer, [model], "peft", documented, "peft-loraplus")
    model = lora()
    optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=1e-4, weight_decay=0.1)
    documented = "Weight decay (L2 penalty)"
    yield Built("peft LoRA-FA", "weight_decay=0.1", optimizer, [model], "peft", documented, "l2-names")


def case_trl() -> Iterator[Built]:
    """SFT, DPO, reward and GRPO with their own default configurations."""
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    cpu: dict[str, Any] = {"output_dir": FOLDER, "use_cpu": True, "report_to": [], "bf16": False}
    text = Dataset.from_dict({"text": ["w1 w2 w3"] * 8})
    pairs = Dataset.from_dict({"prompt": ["w1 w2"] * 8, "chosen": ["w3 w4"] * 8, "rejected": ["w5 w6"] * 8})
    documented = "weight_decay of the Trainer, 0 by default"
    model: Any = llama()
    trainer = SFTTrainer(model=model, args=SFTConfig(**cpu), train_dataset=text, processing_class=tokenizer())
    yield Built(
        "trl SFTTrainer", "defaults; Llama", trainer.create_optimizer(), [model], "trl", documented, "as documented"
    )
    model = llama()
    trainer = DPOTrainer(
        model=model,
        ref_model=llama(),
        args=DPOConfig(**cpu),
        train_dataset=pairs,
        processing_class=tokenizer(),
    )
    yield Built(
        "trl DPOTrainer", "defaults; Llama", trainer.create_optimizer(), [model], "trl", documented, "as documented"
    )
    model = LlamaForSequenceClassification(LlamaConfig(num_labels=1, **SMALL_LLAMA))
    trainer = RewardTrainer(model=model, args=RewardConfig(**cpu), train_dataset=pairs, processing_class=tokenizer())
    yield Built(
        "trl RewardTrainer", "defaults; Llama", trainer.create_optimizer(), [model], "trl", documented, "as documented"
    )
    model = llama()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=GRPOConfig(**cpu),
        train_dataset=pairs.select_columns(["prompt"]),
        processing_class=tokenizer(),
    )
    yield Built(
        "trl GRPOTrainer", "defaults; Llama", trainer.create_optimizer(), [model], "trl", documented, "as documented"
    )


def sentence_model() -> Any:
    """A SentenceTransformer around the small BERT, made from files that this writes."""
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertModel

    folder = Path(tempfile.mkdtemp())
    BertModel(BertConfig(**SMALL_BERT)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    transformer = models.Transformer(str(folder), max_seq_length=16)
    width = SMALL_BERT["hidden_size"]
    return SentenceTransformer(modules=[transformer, models.Pooling(width)], device="cpu")


def case_sentence_transformers() -> Iterator[Built]:
    """The trainer with its default and with weight_decay=0.1, with a loss that has weights of its own."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments, losses

    data = Dataset.from_dict({"anchor": ["w1"] * 8, "positive": ["w2"] * 8, "label": [0, 1] * 4})
    for configuration, changes in (("defaults; BERT + SoftmaxLoss", {}), ("weight_decay=0.1", {"weight_decay": 0.1})):
        model = sentence_model()
        loss = losses.SoftmaxLoss(model, sentence_embedding_dimension=SMALL_BERT["hidden_size"], num_labels=2)
        args = SentenceTransformerTrainingArguments(output_dir=FOLDER, use_cpu=True, report_to=[], **changes)
        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=loss)
        optimizer = trainer.create_optimizer()
        documented = "weight_decay of the Trainer, 0 by default; not on bias and LayerNorm"
        yield Built(
            "sentence-transformers",
            configuration,
            optimizer,
            [model, loss],
            "sentence-transformers",
            documented,
            "as documented",
        )


def case_setfit() -> Iterator[Built]:
    """Both phases of SetFit: the embedding model, then the classifier."""
    from datasets import Dataset
    from setfit import SetFitHead, SetFitModel
    from setfit import Trainer as SetFitTrainer
    from setfit import TrainingArguments as SetFitArguments

    data = Dataset.from_dict({"text": ["w1", "w2", "w3", "w4"], "label": [0, 1, 0, 1]})
    head = SetFitHead(in_features=SMALL_BERT["hidden_size"], out_features=2)
    model = SetFitModel(model_body=sentence_model(), model_head=head)
    trainer = SetFitTrainer(model=model, args=SetFitArguments(output_dir=FOLDER, report_to=[]), train_dataset=data)
    inner = trainer.st_trainer
    made: list[Any] = []
    inner.train = lambda *args, **kwargs: made.append(inner.create_optimizer())  # the training itself is not wanted
    trainer.train_embeddings(["w1", "w2", "w3", "w4"], [0, 1, 0, 1], args=trainer.args)
    documented = "l2_weight: used in the classifier training phase if a PyTorch head is used"
    name = "setfit, embedding phase"
    yield Built(name, "defaults; BERT", made[0], [model.model_body], "setfit", documented, "setfit-embedding")
    taken: list[Any] = []
    prepare = model._prepare_optimizer

    class Taken(Exception):
        """Stops the training once the optimizer is there."""

    def capture(*args: Any, **kwargs: Any) -> None:
        taken.append(prepare(*args, **kwargs))
        raise Taken

    model._prepare_optimizer = capture
    for weight in (0.01, 0.0):
        args = SetFitArguments(output_dir=FOLDER, report_to=[], end_to_end=True, l2_weight=weight)
        with contextlib.suppress(Taken):
            trainer.train_classifier(["w1", "w2", "w3", "w4"], [0, 1, 0, 1], args=args)
        documented = f"l2_weight={weight} for body and head in AdamW"
        verdict = "setfit-zero" if weight == 0 else "as documented"
        bodies = [model.model_body, model.model_head]
        name = "setfit, classifier phase"
        yield Built(name, f"end_to_end, l2_weight={weight}", taken.pop(), bodies, "setfit", documented, verdict)


def case_accelerate() -> Iterator[Built]:
    """The library accelerate makes no optimizer; its wrapper must not change what one does."""
    from accelerate import Accelerator

    model = bert()
    optimizer = Accelerator(cpu=True).prepare(torch.optim.AdamW(model.parameters(), lr=1e-3))
    documented = "wraps the given optimizer"
    yield Built("accelerate", "prepare(AdamW(lr=1e-3))", optimizer, [model], "accelerate", documented, "as documented")
