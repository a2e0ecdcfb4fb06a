"""What halflife does on a GPU, part by part: `bash tools/gpu_check.sh`, which says how.

Each part runs in a process of its own, with a limit, and is killed with all that it started when the limit is over; what it
found until then counts. Everything ends by the deadline. Printed are one line of JSON and a table; the JSON is also written to
gpu_check.json, in the folder that OUT names. Exit code 0: everything holds; 1: something does not, or was not reached; 2:
nothing could be run. A part that makes sense on a GPU alone is skipped on a CPU, and times there have no aim.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ("numpy", "safetensors", "filelock")  # what the parts need beside torch
DEADLINE = 9 * 60.0
CPU_PATIENCE = 3  # times the limit of a part
WARM = 70  # steps after which an attached rule no longer looks at what becomes of it
TAIL = 1500  # characters of what a part printed that are kept of one that fails

Row = dict[str, Any]
Rows = Iterator[Row]


def row(check: str, holds: bool | str, value: object = "", note: str = "") -> Row:
    """A line of the table; ``holds`` may be a status of its own."""
    status = holds if isinstance(holds, str) else "ok" if holds else "FAILED"
    return {"check": check, "status": status, "value": str(value), "note": note}


# ---- what the parts share; torch and halflife are imported by the parts' own processes


def synchronize(device: str) -> None:
    """Wait for the device."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def memory(device: str) -> int:
    """Bytes that tensors take on the GPU; 0 on a CPU."""
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def gpt_shapes(width: int, layers: int, vocabulary: int) -> list[tuple[int, ...]]:
    """The shapes of a GPT-2 with biases, embeddings tied."""
    layer: list[tuple[int, ...]] = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    layer += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [(vocabulary, width), (1024, width), *(layer * layers), (width,), (width,)]


def groups_of(shapes: Sequence[tuple[int, ...]], device: str) -> list[dict[str, Any]]:
    """Parameters with gradients in the usual two groups: what has two dimensions decays."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        parameter = torch.nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(device))
        parameter.grad = (torch.randn(shape, generator=generator) * 1e-3).to(device)
        made.append(parameter)
    return [
        {"params": [p for p in made if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in made if p.ndim < 2], "weight_decay": 0.0},
    ]


def transformer(width: int, layers: int, device: str) -> Any:
    """A small language model of torch's own layers."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    body = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    model = torch.nn.Sequential(
        torch.nn.Embedding(512, width), body, torch.nn.LayerNorm(width), torch.nn.Linear(width, 512)
    )
    return model.to(device)


def attached(base: Any, rule: Any) -> Any:
    """Another optimizer on the same parameters with the same state, under a rule: memory that lies elsewhere changes a step."""
    import halflife

    twin = type(base)([dict(group) for group in base.param_groups])
    twin.state = base.state
    if rule is not None:
        halflife.attach(twin, rule, peak_lr=1e-3)
    return twin


# ---- the parts


def environment(device: str) -> Rows:
    """What is there."""
    import torch

    import halflife

    found = {"halflife": halflife.__version__, "torch": torch.__version__, "Python": platform.python_version()}
    yield row("versions", True, ", ".join(f"{name} {version}" for name, version in found.items()))
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        yield row("device", True, f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        yield row("device", True, f"{platform.machine()}, {torch.get_num_threads()} threads")


def no_sync(device: str) -> Rows:
    """Attached steps wait for the device nowhere: torch raises where one does. On a CPU they are only taken."""
    import torch

    import halflife

    rules = {
        "Decoupled": halflife.Decoupled(0.1),
        "HalfLife": halflife.HalfLife(steps=1000),
        "Scheduled": halflife.Scheduled(halflife.Decoupled(0.1), halflife.schedules.cosine(1.0, 0.1, 100)),
        "Stable": halflife.Stable(1e-4),
        "Cautious": halflife.Cautious(halflife.Decoupled(0.1)),
        "Toward": halflife.Toward(halflife.Decoupled(0.1), "init"),
        "NormTarget": halflife.NormTarget(),
        "Sphere": halflife.Sphere(),
    }
    optimizers: dict[str, Callable[[Any], Any]] = {
        "AdamW, fused": functools.partial(torch.optim.AdamW, lr=1e-3, fused=True),
        "AdamW, foreach": functools.partial(torch.optim.AdamW, lr=1e-3, foreach=True),
        "SGD, momentum": functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9, foreach=True),
    }
    for name, make in optimizers.items():
        for rule_name, rule in {"bare": None, **rules}.items():
            optimizer = make(groups_of([(64, 64), (64,), (64, 128)], device))
            if rule is not None:
                halflife.attach(optimizer, rule)
            yield without_waiting(f"{rule_name} on {name}", optimizer.step, device)
    optimizer = torch.optim.AdamW(groups_of([(64, 64), (64,)], device), lr=1e-3, fused=True)
    halflife.attach(optimizer, halflife.Stable(1e-4))
    scaler = torch.amp.GradScaler(device)
    scaler.scale(torch.ones((), device=device))

    def scaled() -> None:
        scaler.step(optimizer)
        scaler.update()

    yield without_waiting("Stable on AdamW, fused, with a GradScaler", scaled, device)
    if device != "cuda":
        yield row("waits for the device", "skipped", "", "needs cuda: nothing waits for a CPU")


def without_waiting(what: str, step: Callable[[], object], device: str) -> Row:
    """Take a few steps, then a few in which waiting for the device is an error."""
    import torch

    for _ in range(3):
        step()
    synchronize(device)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    except RuntimeError as error:
        return row(what, False, "waits", str(error).splitlines()[0])
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return row(what, True, "waits nowhere" if device == "cuda" else "6 steps")


def memory_after_errors(device: str) -> Rows:
    """After an exception in a step memory, weights and settings are those from before, and the next step works."""
    import torch

    import halflife

    rules = {
        "Stable": halflife.Stable(1e-4),
        "Cautious": halflife.Cautious(halflife.Decoupled(0.1)),
        "Toward": halflife.Toward(halflife.Decoupled(0.1), "init"),
        "NormTarget": halflife.NormTarget(),
    }

    def raising(*_: object) -> None:
        raise ArithmeticError("the loss is NaN")

    def out_of_memory() -> float:
        return float(torch.empty(1 << 52, dtype=torch.uint8, device=device).sum())

    class Guarded(torch.optim.AdamW):
        """Raises in the update."""

        broken = False

        def step(self, closure: Any = None) -> Any:
            """As AdamW's."""
            if self.broken and closure is None:
                raise ArithmeticError("the update fails")
            return super().step(closure)

    for name, rule in rules.items():
        for kind in (
            "a user's hook raises",
            "memory runs out in the closure",
            "the update raises",
            "the rate is refused",
        ):
            groups = groups_of([(256, 256), (256,), (128, 256)], device)
            optimizer = Guarded(groups, lr=1e-3, fused=True)
            halflife.attach(optimizer, rule, peak_lr=1e-3)
            for _ in range(WARM):
                optimizer.step()
            weights = [p.detach().cpu().clone() for group in groups for p in group["params"]]
            decays = [group["weight_decay"] for group in optimizer.param_groups]
            synchronize(device)
            gc.collect()
            gc.disable()
            before = memory(device)
            try:
                failed = raised_by(optimizer, kind, raising, out_of_memory)
                synchronize(device)
                kept = memory(device) - before
            finally:
                gc.enable()
            now = [p.detach().cpu() for group in groups for p in group["params"]]
            # A decay that is taken back is divided by again, which rounds.
            same = all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(weights, now, strict=True))
            same = same and decays == [group["weight_decay"] for group in optimizer.param_groups]
            optimizer.step()
            moved = not torch.equal(weights[0], groups[0]["params"][0].detach().cpu())
            value = "weights and settings as before" if same else "changed"
            if device == "cuda":
                value += f", {kept:+,} bytes"
            note = "" if failed else "nothing was raised"
            yield row(f"{name}, {kind}", failed and same and moved and kept <= 0, value, note)
    if device != "cuda":
        yield row("memory_allocated as before", "skipped", "", "needs cuda")


def raised_by(optimizer: Any, kind: str, raising: Callable[..., None], out_of_memory: Callable[[], float]) -> bool:
    """Take a step that fails in one way, and mend what made it fail; whether it failed."""
    hook = optimizer.register_step_pre_hook(raising) if "hook" in kind else None
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.broken = "update" in kind
    if "rate" in kind:
        optimizer.param_groups[0]["lr"] = math.nan
    try:
        optimizer.step(*([out_of_memory] if "closure" in kind else []))
    except (ArithmeticError, RuntimeError, ValueError):
        return True
    finally:
        optimizer.broken = False
        if hook is not None:
            hook.remove()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return False


def overhead(device: str) -> Rows:
    """What attach and Stable cost: loops of steps, alternating in an order drawn anew, medians of the ratios within a round."""
    import torch

    import halflife

    cuda = device == "cuda"
    width, layers, vocabulary = (768, 12, 50_304) if cuda else (64, 2, 512)
    loop, rounds = (20, 15) if cuda else (5, 9)
    base = torch.optim.AdamW(groups_of(gpt_shapes(width, layers, vocabulary), device), lr=1e-3, fused=True)
    base.step()
    gradients = [p.grad for group in base.param_groups for p in group["params"]]
    steps: dict[str, Callable[[], object]] = {
        "bare": base.step,
        "bare again": attached(base, None).step,
        "Decoupled": attached(base, halflife.Decoupled(0.1)).step,
        "HalfLife": attached(base, halflife.HalfLife(steps=10_000)).step,
        "Stable": attached(base, halflife.Stable(1e-4)).step,
        "norm": lambda: torch.nn.utils.get_total_norm(gradients),
    }
    times = alternate(steps, loop, rounds, device)
    count = sum(p.numel() for group in base.param_groups for p in group["params"])
    bare = statistics.median(times["bare"])
    yield row("fused AdamW alone", "measured", f"{bare * 1e3:.3f} ms a step", f"{count / 1e6:.1f} M parameters")
    yield ratio("bare again / bare", times["bare again"], times["bare"], None)
    for name in ("Decoupled", "HalfLife"):
        yield ratio(f"{name} / bare", times[name], times["bare"], 1.05 if cuda else None)
    with_norm = [a + b for a, b in zip(times["bare"], times["norm"], strict=True)]
    yield ratio("Stable / bare", times["Stable"], times["bare"], None)
    yield ratio("Stable / (bare + torch's norm)", times["Stable"], with_norm, 1.1 if cuda else None)
    yield from training_overhead(device)


def training_overhead(device: str) -> Rows:
    """The same in training steps, forward and backward included."""
    import torch

    import halflife

    cuda = device == "cuda"
    model = transformer(512 if cuda else 64, 6 if cuda else 2, device)
    tokens = torch.randint(512, (32, 257) if cuda else (2, 17), device=device)
    base = torch.optim.AdamW(halflife.param_groups(model, policy="matrices", weight_decay=0.1), lr=1e-4, fused=True)

    def training(optimizer: Any) -> Callable[[], None]:
        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                logits = model(tokens[:, :-1])
            torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()

        return step

    training(base)()
    rules = {"bare": None, "Decoupled": halflife.Decoupled(0.1), "Stable": halflife.Stable(1e-4)}
    steps = {name: training(attached(base, rule)) for name, rule in rules.items()}
    times = alternate(steps, 5, 11 if cuda else 5, device)
    yield row(
        "training step, bare", "measured", f"{statistics.median(times['bare']) * 1e3:.2f} ms", "transformer in bfloat16"
    )
    yield ratio("training step, Decoupled / bare", times["Decoupled"], times["bare"], 1.01 if cuda else None)
    yield ratio("training step, Stable / bare", times["Stable"], times["bare"], 1.03 if cuda else None)


def alternate(steps: dict[str, Callable[[], object]], loop: int, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds a step: every variant once a round, ``loop`` steps before the device is waited for; two rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    for turn in range(rounds + 2):
        shuffle(order)
        for name in order:
            synchronize(device)
            begun = time.perf_counter()
            for _ in range(loop):
                steps[name]()
            synchronize(device)
            if turn >= 2:
                times[name].append((time.perf_counter() - begun) / loop)
    return times


def ratio(what: str, above: list[float], below: list[float], aim: float | None) -> Row:
    """Median and middle half of ratios within rounds; held against an aim by its lower end, because other work only adds."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(values, n=4)
    found = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
    return row(what, "measured", found) if aim is None else row(what, low <= aim, found, f"aim <= {aim}")


def explain(device: str) -> Rows:
    """Which decay a model's optimizer applies there, and that the question leaves no trace."""
    import torch

    import halflife

    cuda = device == "cuda"
    for dtype in (torch.float32, torch.bfloat16):
        model = transformer(256 if cuda else 32, 4 if cuda else 1, device).to(dtype)
        groups = halflife.param_groups(model, policy="matrices", weight_decay=0.1)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
        weights, before = [p.detach().clone() for p in model.parameters()], memory(device)
        begun = time.perf_counter()
        table = halflife.explain(model, optimizer)
        took, name = time.perf_counter() - begun, str(dtype).removeprefix("torch.")
        unknown = [r["parameter"] for r in table.rows if r["decays"] is None]
        value = f"{len(table.rows)} parameters, {took:.1f} s"
        yield row(f"every parameter, {name}", not unknown, value, ", ".join(unknown[:3]))
        halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.1", "norms": "none"})
        yield row(f"matrices decay by decoupled:0.1, norms do not, {name}", True)
        same = all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        del table
        gc.collect()
        kept = memory(device) - before
        yield row(f"weights and memory as before, {name}", same and kept == 0, f"{kept:+,} bytes" if cuda else "")


def smoke(device: str) -> Rows:
    """Two studies at the preset smoke, through worker processes: every run ends, on the device."""
    from halflife.studies.catalog import STUDIES
    from halflife.studies.runner import pool
    from halflife.studies.runner.plan import make_plan
    from halflife.studies.store.store import Store

    for name in ("stabilization", "lm-effective-lr"):
        study, begun = STUDIES[name], time.perf_counter()
        plan = make_plan(study, "smoke", study.presets["smoke"], num_seeds=1, max_steps=None, data_folder=None)
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            failures = pool.execute(
                store, plan, plan.needed, workers=2, listen=lambda *_: None, data_folder=None, notice=print
            )
            runs = [store.run(run.id) for run in plan.needed]
            done = [run for run in runs if run.finished and run.header()["machine"]["device"].startswith(device)]
            value = f"{len(done)} of {len(runs)} runs in {time.perf_counter() - begun:.0f} s"
            yield row(
                f"{name}, one seed", len(done) == len(runs) and not failures, value, "; ".join(map(str, failures))[:200]
            )


def paper_images(device: str) -> Rows:
    """Two steps of a paper preset on images, on drawn data in the layout of CIFAR-10."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            records = generator.integers(0, 256, (10_000, 3073), dtype=np.uint8)
            records[:, 0] %= 10
            records.tofile(Path(folder, f"{name}.bin"))
        small = {"width": 4, "num_train": 256, "num_test": 128}
        for precision in ("float16", "bfloat16"):
            yield from two_steps("stabilization", device, folder, {"precision": precision}, small)


def paper_text(device: str) -> Rows:
    """Two steps of a paper preset on text, on drawn tokens in nanoGPT's layout; one precision is compiled, as the preset is."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for name, count in (("train.bin", 4_000_000), ("val.bin", 500_000)):
            generator.integers(0, 50_257, count, dtype=np.uint16).tofile(Path(folder, name))
        small = {"width": 48, "depth": 1, "batch_size": 4, "accumulate": 2, "context": 32, "num_eval_tokens": 1024}
        small["compile"] = False
        for precision, compiled in (("float16", False), ("bfloat16", True)):
            yield from two_steps("lm-schedules", device, folder, {"precision": precision, "compile": compiled}, small)


def two_steps(name: str, device: str, folder: str, changes: dict[str, Any], small: dict[str, Any]) -> Rows:
    """Train the first arm of a study's paper preset for two steps; smaller on a CPU."""
    import torch

    from halflife.studies.catalog import STUDIES
    from halflife.studies.lab.trainer import Context, train

    spec: Any = STUDIES[name].presets["paper"].arms[0].build(0)
    spec = replace(spec, **(changes | (small if device == "cpu" else {}))).cut(2)
    readings: list[Any] = []
    begun = time.perf_counter()
    train(spec, Context(device=torch.device(device), data_folder=folder), sink=readings.append)
    losses = {key: value for key, value in readings[-1].values.items() if "loss" in key}
    value = f"{time.perf_counter() - begun:.1f} s"
    if device == "cuda":
        value += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        torch.cuda.reset_peak_memory_stats()
    finite = bool(losses) and all(math.isfinite(loss) for loss in losses.values())
    how = f"{spec.precision}{', compiled' if getattr(spec, 'compile', False) else ''}"
    yield row(f"{name}, {how}, two steps", finite, value, "shrunk for a CPU" if device == "cpu" else "")


def selfcheck(device: str, seconds: float) -> Rows:
    """The conformance table: every rule on every optimizer, steps that wait for the device included; as far as time reaches."""
    import warnings

    from halflife.selfcheck.bad_inputs import BAD_INPUTS
    from halflife.selfcheck.table import plan, run_table

    warnings.simplefilter("ignore")  # torch's own, of optimizers that nobody here has chosen
    cases = plan(device, quick=device == "cpu")
    random.Random(0).shuffle(cases)  # so that what is reached in time is of all optimizers
    end = time.monotonic() + seconds - 10

    class OverError(Exception):
        """No time is left."""

    seen: list[Any] = []

    def listen(outcome: Any) -> None:
        seen.append(outcome)
        if time.monotonic() > end and len(seen) < len(cases):
            raise OverError

    with contextlib.suppress(OverError):
        report = run_table(cases, device, listen)
        answered = report.num_bad_inputs - len(report.wrong_answers)
        yield row("bad inputs", not report.wrong_answers, f"{answered} of {len(BAD_INPUTS)} get their sentence")
    counts = {status: sum(outcome.status == status for outcome in seen) for status in ("ok", "refused", "FAILED")}
    for outcome in [outcome for outcome in seen if outcome.status == "FAILED"][:20]:
        yield row(f"{outcome.rule} on {outcome.optimizer}, {outcome.dtype}", False, "", outcome.detail)
    whole = len(seen) == len(cases)
    status = "FAILED" if counts["FAILED"] else "ok" if whole else "not reached"
    value = f"{counts['ok']} hold, {counts['refused']} refused as documented, {counts['FAILED']} fail"
    yield row("rules on optimizers", status, value, f"{len(seen)} of {len(cases)} cases")


@dataclass(frozen=True)
class Part:
    """A part.

    Args:
        run: Yields its rows.
        limit: Seconds at most.
        needs: Packages beside torch.
    """

    run: Callable[..., Rows]
    limit: float
    needs: tuple[str, ...] = ()


# In the order in which they run: the last ones are cut first when time is short.
PARTS = {
    "environment": Part(environment, 60),
    "no-sync": Part(no_sync, 60),
    "memory": Part(memory_after_errors, 60),
    "overhead": Part(overhead, 90),
    "explain": Part(explain, 60),
    "paper-images": Part(paper_images, 75, ("numpy", "safetensors")),
    "smoke": Part(smoke, 120, WHEELS),
    "paper-text": Part(paper_text, 120, ("numpy", "safetensors")),
    "selfcheck": Part(selfcheck, 240),
}


# ---- running them


def supervised(words: Sequence[str], limit: float, env: dict[str, str], log: Path) -> int | None:
    """Run a command in a session of its own; at the limit it is killed with everything that it started.

    Returns:
        Its exit code; None where it was killed.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
        try:
            return process.wait(max(0.0, limit))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def rows_in(path: Path) -> list[Row]:
    """The rows that a part has written."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def run_part(name: str, device: str, limit: float, env: dict[str, str], folder: Path) -> list[Row]:
    """Run one part; its rows, and one more where it did not come to its end."""
    part, begun = PARTS[name], time.monotonic()
    missing = [need for need in part.needs if not there(need, env)]
    if missing:
        how = "bash tools/gpu_check.sh --pack .whl, where there is a network, and take the folder along"
        found = [row("all", "not reached", "", f"{' and '.join(missing)} missing: {how}")]
    elif limit < 2:
        found = [row("all", "not reached", "", "no time was left")]
    else:
        rows, log = folder / f"{name}.jsonl", folder / f"{name}.log"
        words = (
            sys.executable,
            "-P",
            __file__,
            "--device",
            device,
            "--one",
            name,
            "--rows",
            str(rows),
            "--limit",
            str(limit),
        )
        code = supervised(words, limit, env, log)
        found = rows_in(rows)
        tail = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        if code is None:
            found.append(row("the rest", "not reached", "", f"killed after {limit:.0f} s"))
        elif code:
            said = tail.strip().splitlines()
            found.append(row("the rest", False, f"exit code {code}", said[-1] if said else "") | {"log": tail})
    for each in found:
        each.update(part=name)
    if found:
        found[0]["seconds"] = round(time.monotonic() - begun, 1)
    return found


def there(package: str, env: dict[str, str]) -> bool:
    """Whether a package can be imported by the parts."""
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode == 0


def install_missing(wheels: Path, target: Path) -> None:
    """Unpack the wheels of what is missing into a folder of our own; what cannot be is told by the parts that need it."""
    missing = [name for name in WHEELS if importlib.util.find_spec(name) is None]
    if missing and wheels.is_dir():
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-index", "--no-deps")
        for name in missing:
            subprocess.run([*pip, "--find-links", str(wheels), "--target", str(target), name], check=False)


def pack(folder: str, pip_args: Sequence[str]) -> int:
    """Download the wheels that may be missing; ``--python-version`` and ``--platform`` are pip's, for another machine."""
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "-q",
        "--no-deps",
        "--only-binary",
        ":all:",
    )
    done = subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), "-d", folder, *pip_args, *WHEELS], check=False)
    names = sorted(path.name for path in Path(folder).glob("*.whl")) if done.returncode == 0 else []
    print(*names, sep="\n")
    return 0 if names else 2


def shown(rows: Sequence[Row], seconds: float, device: str) -> str:
    """The table, and one line that sums it up."""
    widths = [max(len(str(each[key])) for each in rows) for key in ("part", "check", "status", "value")]
    lines, last = [], ""
    for each in rows:
        cells = ["" if each["part"] == last else each["part"], each["check"], each["status"], each["value"]]
        took = f"{each['seconds']:.0f} s" if "seconds" in each else ""
        padded = [str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*padded, took.rjust(5), each["note"]]).rstrip())
        last = each["part"]
    counts = Counter(each["status"] for each in rows)
    verdict = ", ".join(f"{count} {status}" for status, count in counts.items())
    return "\n".join([*lines, "", f"{verdict}; on {device}, in {seconds:.0f} s"])


def run_all(device: str, names: Sequence[str], seconds: float, wheels: Path) -> int:
    """Run the parts until the deadline, and print what they found, whatever happens."""
    begun = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="halflife-gpu-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        install_missing(wheels, folder / "packages")
        path = os.pathsep.join([str(ROOT / "src"), str(folder / "packages"), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "TMPDIR": made}
        if device == "cpu":
            env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            for name in names:
                left = seconds - (time.monotonic() - begun)
                limit = PARTS[name].limit * (1 if device == "cuda" else CPU_PATIENCE)
                found = run_part(name, device, min(limit, left), env, folder)
                rows += found
                print(f"{name}: {', '.join(sorted({each['status'] for each in found}))}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            rows.append(row("the rest", "not reached", "", "stopped") | {"part": name})
    took = time.monotonic() - begun
    held = bool(rows) and all(each["status"] in {"ok", "measured", "skipped"} for each in rows)
    document = json.dumps({"ok": held, "device": device, "seconds": round(took, 1), "rows": rows})
    out = Path(os.environ.get("OUT") or ".") / "gpu_check.json"
    out.write_text(document + "\n", encoding="utf-8")
    print(document)
    print(f"\n{shown(rows, took, device)}")
    return 0 if held else 1


def run_one(name: str, device: str, rows: Path, limit: float) -> int:
    """Run a part in this process, and write each row when it is known."""
    arguments = (device, limit) if name == "selfcheck" else (device,)
    with rows.open("w", encoding="utf-8") as file:
        try:
            for each in PARTS[name].run(*arguments):
                print(json.dumps(each), file=file, flush=True)
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def cannot(device: str) -> str:
    """Why nothing can be run here; empty if something can."""
    if sys.version_info < (3, 11):  # noqa: UP036 - it runs with the Python that is there
        return f"halflife needs Python 3.11 or newer, got {platform.python_version()}: name another, PYTHON=/path/to/python"
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch: name a Python that has one, PYTHON=/path/to/python"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no GPU here: try the script with --device cpu"
    return ""


def main() -> int:
    """Read the words of the command."""
    parser = argparse.ArgumentParser(
        prog="tools/gpu_check.sh", description="What halflife does on a GPU, in one command."
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, with commas between (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=DEADLINE, help="when to end at the latest (default: %(default)g)"
    )
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / ".whl", help="the folder that --pack has filled (default: .whl)"
    )
    parser.add_argument("--pack", metavar="FOLDER", help="only download wheels; more arguments are pip's")
    for hidden in ("--one", "--rows", "--limit"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.pack:
        return pack(given.pack, rest)
    names = given.parts.split(",")
    if rest or not set(names) <= set(PARTS):
        parser.error(f"expected parts of {','.join(PARTS)}, got {' '.join([*rest, *sorted(set(names) - set(PARTS))])}")
    if words := cannot(given.device):
        print(f"error: {words}", file=sys.stderr)
        return 2
    if given.one:
        return run_one(given.one, given.device, Path(given.rows), float(given.limit))
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a limit from outside: what is done is printed all the same
    return run_all(given.device, names, given.seconds, given.wheels)


if __name__ == "__main__":
    sys.exit(main())
