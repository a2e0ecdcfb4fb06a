"""One run of a language model, plain, branch or replay: its state, an optimizer step, and what is read between steps.

The state after a step is a function of the weights, the optimizer's state, the averages and the step's number: the order
of the data and dropout's masks are seeded by (seed, step). So a checkpoint at any step resumes to the same bits.

Shapes: B windows, T tokens of a window, W windows of an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from halflife.errors import DivergedError, UserError
from halflife.optim.norms import squared_norms
from halflife.studies.lab.arrays import floats
from halflife.studies.lab.precision import Mode
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.text.averages import averages_of
from halflife.studies.lab.text.evaluate import block_means, even_windows, on_its_way, window_losses, windows_at
from halflife.studies.lab.text.models import build_text_model
from halflife.studies.lab.text.numerics import Seen
from halflife.studies.lab.text.optimizers import training_of
from halflife.studies.lab.text.order import WindowOrder
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.lab.text.plans import plan_of
from halflife.studies.lab.text.probes import check_probes, probe
from halflife.studies.lab.text.replay import Matcher, trace_row, write_trace
from halflife.studies.lab.text.state import State
from halflife.studies.lab.text.stored import StoredWeights
from halflife.studies.lab.text.tokens import load_tokens
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.branches import TextBranch, TextReplay
from halflife.studies.specs.text import TextRun
from halflife.studies.store.records import Array, Reading

__all__ = ["TextLoop", "open_run"]

CHECKPOINT = "checkpoint"  # without suffix
SMALLEST_SCALE = 2.0**-20  # of float16's gradient scaler, which begins at 2^16: below, every step is skipped


def open_run(spec: TextRun | TextBranch | TextReplay, context: Context) -> Run:
    """A run of a language model, read every ``log_every`` steps and at evaluations; it can be stopped after any step."""
    return TextLoop(spec, context)


class TextLoop:
    """The state of one run, and the few things that are done with it.

    Args:
        spec: The run.
        context: Where it is trained.

    Raises:
        UserError: It cannot be trained by so many processes, or what it starts from is not there.
    """

    unit = "tokens"

    def __init__(self, spec: TextRun | TextBranch | TextReplay, context: Context) -> None:
        self.plan = plan = plan_of(spec, context.parent)
        self.spec, self.seed, self.device = plan.base, spec.seed, context.device
        self.parallel = context.parallel or DataParallelContext(self.device)
        self.num_steps, spec = plan.num_steps, plan.base
        if spec.batch_size % (self.parallel.size * spec.accumulate):
            raise UserError(
                f"batch_size is {spec.batch_size} on {self.parallel.size} processes in {spec.accumulate} parts, expected a"
                " multiple of processes times parts: take another number of processes"
            )
        check_probes(spec, self.parallel)
        if spec.reads_precision and self.parallel.size > 1:
            raise UserError(
                f"the run's precision is simulated or watched, and there are {self.parallel.size} processes, expected one:"
                " train in one process"
            )
        data = load_tokens(spec, context.data_folder)
        self.tokens, self.last_only = data.train, spec.model == "mlp"
        targets = 1 if self.last_only else spec.context
        self.samples = spec.batch_size * targets
        self.order = WindowOrder(
            num_tokens=len(self.tokens),
            context=spec.context,
            targets_per_window=targets,
            batch_size=spec.batch_size,
            seed=self.seed,
            order=spec.order,
        )
        self.order.check(plan.first_batch + plan.num_steps)
        self.num_eval_windows = math.ceil(spec.num_eval_tokens / targets)
        starts = even_windows(len(data.val), spec.context + 1, self.num_eval_windows)
        self.val_WT = windows_at(data.val, starts, spec.context + 1)
        model = build_text_model(spec, self.seed).to(self.device)
        self.model = model
        wrapped = self.parallel.wrap(model, list(model.blocks))
        self.forward = torch.compile(wrapped) if spec.compile else wrapped
        training = training_of(
            spec, self.model, decay=plan.decay, tokens_per_step=self.samples, split=plan.replay is not None
        )
        self.optimizer, self.decay, self.decayed = training.optimizer, training.decay, training.decayed
        self.weights = list(self.model.parameters())
        self.stored = StoredWeights(spec, self.seed, self.weights, training, plan.decay)
        self.averages = averages_of(self.weights, plan.ema, plan.average_from)
        self.mode = Mode(spec.precision, self.device)
        self.scaler = self.mode.scaler
        self.state = State(
            model=model,
            training=training,
            averages=self.averages,
            pending=self.stored.pending,
            scaler=self.scaler,
            tokens_digest=data.digest,
            parallel=self.parallel,
            run=plan.run,
        )
        self.matcher = None
        if plan.replay is not None and plan.norms is not None:
            self.matcher = Matcher(
                plan.norms, plan.replay, self.weights, self.decayed, num_steps=plan.num_steps, run=plan.parent
            )
        self.lr = plan.lr(0)
        self.grad_norm = torch.zeros((), device=self.device)
        self.seen: Seen | None = None
        self.running_loss: float | None = None
        self.last_norms = "no good reading before"
        if plan.start is not None and not self.state.load(plan.start, parent=plan.parent):
            raise UserError(
                f"the checkpoint {plan.start} is gone: remove the parent's folder, the parent is then trained again"
            )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @property
    def epoch(self) -> float:
        """Passes over the training tokens."""
        return (self.plan.first_batch + self.step) * self.samples / len(self.tokens)

    def evaluates_at(self, step: int) -> bool:
        """Whether the losses on both splits are read after so many steps."""
        return step % self.plan.eval_every == 0 or step in self.plan.arrays_at

    def reads_at(self, step: int) -> bool:
        """Whether anything is read after so many steps."""
        return step % self.spec.log_every == 0 or self.evaluates_at(step)

    @property
    def evaluates(self) -> bool:
        """Whether the losses on both splits are read now."""
        return self.evaluates_at(self.step)

    def one_step(self) -> None:
        """Forward, backward, clip, step; nothing waits for the device."""
        spec, optimizer = self.spec, self.optimizer
        self._set_lr()
        if self.plan.trace_norms:
            self.state.trace.append(trace_row(self.weights, 0.0))
        if spec.dropout > 0:
            torch.manual_seed(seed_of(f"dropout/{self.seed}/{self.plan.first_batch + self.step}/{self.parallel.rank}"))
        starts = self.order.starts(self.plan.first_batch + self.step)
        if self.parallel.size > 1:
            starts = starts[self.parallel.rank :: self.parallel.size]
        windows_BT = on_its_way(windows_at(self.tokens, starts, spec.context + 1), self.device)
        read = spec.reads_precision and self.reads_at(self.step + 1)
        self.seen = self.model.numerics.seen = Seen() if read else None
        with self.stored.as_seen():
            self.state.losses.append(self._gradients(windows_BT))
        self.model.numerics.seen = None
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        if self.plan.loss_penalty > 0:
            with torch.no_grad():
                pairs = [(p.grad, p) for p in self.decayed if p.grad is not None]
                torch._foreach_add_([g for g, _ in pairs], [p for _, p in pairs], alpha=self.plan.loss_penalty)
        if spec.clip is not None:
            self.grad_norm = self.parallel.plain(torch.nn.utils.clip_grad_norm_(self.weights, spec.clip))
        elif self.reads_at(self.step + 1):
            gradients = [p.grad for p in self.weights if p.grad is not None]
            self.grad_norm = self.parallel.plain(torch.nn.utils.get_total_norm(gradients))
        self.stored.step(self._optimizer_step, self.plan.first_batch + self.step, read=read)
        optimizer.zero_grad()
        if self.plan.trace_norms and self.decay is not None:
            self.state.trace[-1][-1] = max(self.decay.fractions())
        self.state.step += 1
        for average in self.averages:
            average.update(self.state.step)

    def _gradients(self, windows_BT: Tensor) -> Tensor:
        """Leave the gradients of a batch; its loss."""
        total: Tensor | None = None
        accumulate = self.spec.accumulate
        for index, part_BT in enumerate(windows_BT.chunk(accumulate) if accumulate > 1 else (windows_BT,)):
            with self.parallel.gradient_sync(index == accumulate - 1):
                loss = self._loss(part_BT)
                if accumulate > 1:
                    loss = loss / accumulate
                torch.autograd.backward(self.scaler.scale(loss) if self.scaler.is_enabled() else loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _optimizer_step(self) -> None:
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def _loss(self, windows_BT: Tensor) -> Tensor:
        with self.mode.autocast():
            logits = self.forward(windows_BT[:, :-1])
            y = windows_BT[:, -1] if self.last_only else windows_BT[:, 1:].flatten()
            logits = logits if self.last_only else logits.flatten(0, 1)
            return functional.cross_entropy(logits.float(), y, label_smoothing=self.spec.label_smoothing)

    def _set_lr(self) -> None:
        self.lr = self.plan.lr(self.step)
        if self.matcher is None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            return
        factor_of = dict(zip(map(id, self.weights), self.matcher.factors(self.step), strict=True))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor_of[id(group["params"][0])]

    def train(self) -> Iterator[float | None]:
        """Step after step; the mean loss since the last reading at each. A single process may be stopped in between, too."""
        while self.step < self.num_steps:
            self.one_step()
            if self.reads_at(self.step):
                self.check()
                self.running_loss = float(self.parallel.mean(torch.stack(self.state.losses).double().mean()))
                self.state.losses.clear()
                yield self.running_loss
            elif self.parallel.size == 1:
                yield None

    def check(self) -> None:
        """Find the first step since the last reading whose loss is NaN or infinite.

        Raises:
            DivergedError: There is one, or the gradient of the last step is.
        """
        finite = self.parallel.mean(torch.stack(self.state.losses)).isfinite().tolist()
        if not all(finite):
            at = self.step - len(finite) + finite.index(False) + 1
            raise DivergedError(at, "the training loss", self.about)
        # float16 gradients overflow now and then: the scaler skips the step and halves its factor.
        scaled = self.scaler.is_enabled()
        if not (self.scaler.get_scale() >= SMALLEST_SCALE if scaled else torch.isfinite(self.grad_norm)):
            raise DivergedError(self.step, "the gradient", self.about)

    def weight_norm(self) -> float:
        """The norm of all weights."""
        return math.sqrt(squared_norms(self.weights).sum().item())

    def reading(self) -> Reading:
        """What is read now."""
        norm, lr = self.weight_norm(), self.lr
        if self.running_loss is not None:
            self.last_norms = (
                f"at the last good reading (step {self.step}) weight norm {norm:.4g}, gradient norm"
                f" {float(self.grad_norm):.3g}"
            )
        values = {"weight_norm": norm}
        if self.matcher is not None:
            values["lr_factor"] = max(group["lr"] for group in self.optimizer.param_groups) / lr if lr > 0 else 1.0
            lr *= values["lr_factor"]
        values["lr"] = lr
        if self.plan.replay != "per-tensor":  # there each tensor has its own
            values["effective_lr"] = lr / norm
        if self.running_loss is not None:
            fractions = self.decay.fractions() if self.decay is not None else [0.0]
            values |= {
                "train/running_loss": self.running_loss,
                "grad_norm": float(self.grad_norm),
                "fraction": max(fractions),
            }
        if self.seen is not None:
            values |= self.model.numerics.readings(self.seen) | self.stored.readings
        arrays: dict[str, Array] = {}
        if self.evaluates_at(self.step):
            self._evaluate("", values, arrays)
            for average in self.averages:
                if average.count:
                    with average.in_place():
                        self._evaluate(f"{average.name}/", values, arrays)
        if self._may_diverge and self.step == self.num_steps:
            values["diverged_at"] = -1.0
        if self.scaler.is_enabled() and not math.isfinite(values.get("grad_norm", 0.0)):
            del values["grad_norm"]  # of a step that was skipped
        return Reading(step=self.step, epoch=self.epoch, values=values, arrays=arrays)

    @property
    def _may_diverge(self) -> bool:
        """Whether a divergence is a result: of a replay, and of a run that is there to tell of its precision."""
        return self.matcher is not None or self.spec.reads_precision

    def diverged(self, step: int) -> Reading | None:
        """The step at which it diverged, where that is a result."""
        if not self._may_diverge:
            return None
        return Reading(step=self.step, epoch=self.epoch, values={"diverged_at": step})

    def _evaluate(self, prefix: str, values: dict[str, float], arrays: dict[str, Array]) -> None:
        seen = self.order.seen(self.plan.first_batch + self.step, self.num_eval_windows)
        parts = {"val": self.val_WT}
        if len(seen):
            parts["train"] = windows_at(self.tokens, seen, self.spec.context + 1)
        for name, windows_WT in parts.items():
            with self.stored.as_seen():
                losses_W = self._losses(windows_WT, self.mode)
            values[f"{prefix}{name}/loss"] = losses_W.double().mean().item()
            if name == "val" and self.step in self.plan.arrays_at:
                arrays[f"{prefix}val/loss_blocks"] = floats(block_means(losses_W))
        if self.spec.reads_precision and self.step in self.plan.arrays_at:
            # The same weights, kept as they are, without any other rounding.
            with self.model.numerics.rounding.off():
                losses_W = self._losses(self.val_WT, Mode("float32", self.device))
            values[f"{prefix}val/loss_float32"] = losses_W.double().mean().item()
        if self.spec.probes and self.step in self.plan.arrays_at:
            starts = self.order.seen(self.plan.first_batch + self.step, self.spec.probe_windows)
            with self.model.numerics.rounding.off():
                found = probe(self.spec, self.model, windows_at(self.tokens, starts, self.spec.context + 1))
            values |= {f"{prefix}{name}": value for name, value in found.items()}

    def _losses(self, windows_WT: Tensor, mode: Mode) -> Tensor:
        return window_losses(self.model, windows_WT, mode.autocast, self.parallel, last_only=self.last_only)

    def load(self, folder: Path) -> bool:
        """Go on from the checkpoint; whether there is one."""
        return self.state.load(folder / CHECKPOINT)

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        self.state.save(folder / CHECKPOINT)

    def keep(self, folder: Path) -> None:
        """Write a checkpoint that branches start from, and at the end the norms that replays follow."""
        if self.step in self.plan.keep_at:
            folder.mkdir(parents=True, exist_ok=True)
            self.state.save(folder / f"step-{self.step}")
        if self.plan.trace_norms and self.step == self.num_steps and self.parallel.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_trace(folder / "norms.safetensors", self.state.trace, run=self.plan.run)

    @property
    def about(self) -> str:
        """The norms that say where a run broke: of the gradient, the weights, and the largest tensors."""
        named = list(self.model.named_parameters())
        norms = squared_norms([parameter for _, parameter in named]).sqrt().tolist()
        # NaN compares with nothing, so it is put first.
        largest = sorted(zip(norms, named, strict=True), key=lambda pair: (math.isfinite(pair[0]), -pair[0]))[:3]
        words = ", ".join(f"{name} {norm:.3g}" for norm, (name, _) in largest)
        settings = f"lr {self.lr:g}, seed {self.seed}; gradient norm {float(self.grad_norm):.3g}"
        return f"{settings}, largest weight norms: {words}; {self.last_norms}"
