"""halflife audit --run: scripts as they are, up to the first step of an optimizer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from typer.testing import CliRunner, Result

from halflife.audit import script
from halflife.audit.found import Found
from halflife.audit.script import run_script
from halflife.cli import main as cli
from halflife.errors import UserError

HEAD = """
import sys, os, pathlib
import torch
from torch import nn

model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def loss():
    return model(torch.ones(2, 3)).sum()

"""

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a text as a script, by the command without its ``main``; options stand before the words of the script."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def start(text: str, *options: str, arguments: tuple[str, ...] = (), head: str = HEAD) -> Result:
        Path("train.py").write_text(head + text, encoding="utf-8")
        words = ["audit", "train.py", "--run", *options, *(("--", *arguments) if arguments else ())]
        return CliRunner().invoke(cli.app, words)

    yield start
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def document(result: Result) -> SimpleNamespace:
    assert result.exit_code in {0, 1}, (result.output, result.exception)
    assert not isinstance(result.exception, UserError), result.exception
    return SimpleNamespace(**json.loads(result.stdout))


ALL = {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}

# ---- as python runs it


def test_everything_is_as_python_has_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("LAM = 0.3\n", encoding="utf-8")
    text = """
import neighbour
import __main__

assert __name__ == "__main__" and __main__.model is model and __package__ is None and __spec__ is None
assert sys.argv == ["train.py", "--data", "x y", "--", "-v"], sys.argv
assert sys.path[0] == str(pathlib.Path(__file__).resolve().parent), sys.path
assert os.path.samefile(os.getcwd(), sys.path[0])
print("said by the script")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=neighbour.LAM)
loss().backward()
optimizer.step()
pathlib.Path("after").touch()
"""
    argv, path, main = sys.argv, list(sys.path), sys.modules["__main__"]
    result = run(text, "--expect", "decoupled:0.3", arguments=("--data", "x y", "--", "-v"))
    assert result.exit_code == 0, (result.output, result.exception)
    assert "holds: decoupled:0.3" in result.stdout
    assert "found: 1 model (Sequential), 1 optimizer (AdamW)" in result.stdout
    assert "said by the script" in result.stderr
    assert "said by the script" not in result.stdout
    assert {each.name for each in tmp_path.iterdir()} == {"train.py", "neighbour.py"}  # nothing is left, nothing cached
    assert (sys.argv, sys.path, sys.modules["__main__"]) == (argv, path, main)
    assert not sys.dont_write_bytecode or "PYTHONDONTWRITEBYTECODE" in __import__("os").environ


def test_a_module_is_run_as_python_m_does(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pack_of_run").mkdir()
    (tmp_path / "pack_of_run" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "pack_of_run" / "parts.py").write_text("LAM = 0.2\n", encoding="utf-8")
    text = f"""{HEAD}
from .parts import LAM

assert __name__ == "__main__" and sys.argv[1:] == ["--fast"]
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=LAM)
optimizer.step()
"""
    (tmp_path / "pack_of_run" / "train.py").write_text(text, encoding="utf-8")
    words = ["audit", "-m", "pack_of_run.train", "--run", "--expect", "l2:0.2", "--", "--fast"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize("expected", ["decoupled:0.1", "none"])
def test_exit_codes(run: Run, expected: str) -> None:
    text = "optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)\noptimizer.step()\n"
    assert run(text, "--expect", expected).exit_code == (0 if expected != "none" else 1)


# ---- whatever steps


STEPS = {
    "closure-first": """
def closure():  # as Lightning has it: backward runs inside of the step
    optimizer.zero_grad()
    value = loss()
    value.backward()
    return value
optimizer.step(closure)
""",
    "grad-scaler": """
scaler = torch.amp.GradScaler("cpu")
scaler.scale(loss()).backward()
scaler.step(optimizer)
""",
    "scheduled": """
first = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
second = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
loss().backward()
optimizer.step()
""",
    "step-of-the-object": """
def step(closure=None):
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p, alpha=0.5)
optimizer.step = step
loss().backward()
optimizer.step()
""",
    "compiled": """
step = torch.compile(lambda: optimizer.step(), backend="eager")
loss().backward()
step()
""",
    "in-a-thread": """
import threading
def train():
    loss().backward()
    optimizer.step()
thread = threading.Thread(target=train)
thread.start()
""",
    "in-a-pool": """
import time
from concurrent.futures import ThreadPoolExecutor
def train():
    time.sleep(0.2)
    loss().backward()
    optimizer.step()
pool = ThreadPoolExecutor(2)  # which nobody shuts down
pool.submit(train)
""",
    "in-the-backward-pass": """
for p in model.parameters():
    p.register_post_accumulate_grad_hook(lambda p: optimizer.step())
loss().backward()
""",
    "everything-is-caught": """
for _ in range(3):
    try:
        loss().backward()
        optimizer.step()
    except:
        pass
    finally:
        print("cleaning up")
sys.exit(5)
""",
    "a-class-without-the-constructor": """
class Wrapped(torch.optim.Optimizer):  # as accelerate's and torch-optimizer's are made
    def __init__(self, params):
        self.params = list(params)
        self.param_groups, self.state, self.defaults = [{"params": self.params, "lr": 0.1}], {}, {"lr": 0.1}

    def step(self, closure=None):
        raise AssertionError("the step itself must not run")

del optimizer
other = Wrapped(model.parameters())
other.step()
""",
}


def found_in(text: str) -> Found:
    """What a script has at its first step; nothing is probed."""
    Path("train.py").write_text(HEAD + text, encoding="utf-8")
    seen: list[Found] = []

    def report(found: Found) -> int:
        seen.append(found)
        return 7

    def fail(error: UserError) -> int:
        raise error

    assert run_script("train.py", report=report, fail=fail) == 7
    (found,) = seen
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of its compiler
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "compiled" else ()) for name in STEPS]
)
def test_every_step_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda *arguments: None)  # that the thread was stopped
    text = "optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)\n"
    monkeypatch.chdir(tmp_path)
    end = "\npathlib.Path('after').touch()\n" if name not in {"in-a-thread", "in-a-pool"} else ""
    found = found_in(text + STEPS[name] + end)
    assert found.model is not None
    assert {name for name, _ in found.model.named_parameters()} == ALL
    assert found.plain()["optimizers"] == ["Wrapped" if "constructor" in name else "AdamW"]
    assert not Path("after").exists()
    assert not torch_optimizer._global_optimizer_pre_hooks
    assert not {"__setattr__", "__init_subclass__"} & vars(Optimizer).keys()


def test_the_classes_are_as_they_were(run: Run) -> None:
    text = """
class Own(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure=None):
        pass

class Never(Own):
    def step(self, closure=None):
        return super().step(closure)

def replaced(closure=None):
    pass

optimizer = Own(model.parameters())
sys.modules["kept_classes"] = (Own, Never, optimizer, replaced)
optimizer.step = replaced
optimizer.step()
"""
    assert run(text, "--json").exit_code == 0
    kept: Any = sys.modules.pop("kept_classes")
    own, never, optimizer, replaced = kept
    assert own.step.hooked  # by torch
    assert own.step.__wrapped__.__code__.co_filename.endswith("/train.py")
    assert never.step.__code__.co_filename.endswith("/train.py")
    assert optimizer.step is replaced


# ---- what is audited


def test_the_outermost_optimizer_is_audited(run: Run) -> None:
    text = """
class Outer(torch.optim.Optimizer):
    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        return self.inner.step(closure)

optimizer = Outer(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
loss().backward()
optimizer.inner.step()
"""
    assert found_in(text).plain()["optimizers"] == ["Outer"]


def test_a_wrapper_that_is_no_torch_optimizer_is_audited(run: Run) -> None:
    """Its decay is outside of the optimizer inside, as that of fastai's OptimWrapper."""
    text = """
class Wrapper:
    def __init__(self, inner, wd):
        self.inner, self.wd = inner, wd

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def step(self):
        with torch.no_grad():
            for group in self.inner.param_groups:
                for p in group["params"]:
                    p.mul_(1 - self.wd * group["lr"])
        self.inner.step()

optimizer = Wrapper(torch.optim.Adam(model.parameters(), lr=0.1), 0.2)
loss().backward()
optimizer.step()
"""
    result = run(text, "--json")
    assert document(result).found["optimizers"] == ["Wrapper"]
    assert all(row["decays"] is not False for row in document(result).rows)


def test_several_models_and_what_is_left_out(run: Run) -> None:
    text = """
import copy
G, D = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1))
average = copy.deepcopy(G)
opt_D = torch.optim.SGD(D.parameters(), lr=0.1, weight_decay=0.2)
opt_G = torch.optim.AdamW(G.parameters(), lr=0.1, weight_decay=0.1)
old = torch.optim.SGD(G.parameters(), lr=1.0)
old.me = old  # only a cycle keeps it
del old
D(G(torch.ones(1, 2))).sum().backward()
opt_G.step()
"""
    result = run(text, "--json", "--expect", "G.*=decoupled:0.1", "--expect", "D.*=l2:0.2")
    assert result.exit_code == 0, (result.output, result.exception)
    found = document(result).found
    assert sorted(found["models"]) == ["D", "G"]
    assert found["optimizers"] == ["AdamW", "SGD"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of its compiler
@pytest.mark.parametrize(
    "wrapped",
    [
        "torch.compile(model, backend='eager')",
        "nn.DataParallel(model)",
        "nn.DataParallel(torch.compile(model))",
    ],
)
def test_prefixes_are_stripped(run: Run, wrapped: str) -> None:
    text = f"""
wrapped = {wrapped}
optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, weight_decay=0.1)
wrapped(torch.ones(2, 3)).sum().backward()
optimizer.step()
"""
    model = found_in(text).model
    assert model is not None
    assert {name for name, _ in model.named_parameters()} == ALL


def test_the_real_optimizer_and_its_state_are_what_is_seen(run: Run) -> None:
    """A decay that only some parameters get, by their identity."""
    text = """
class Skips(torch.optim.Optimizer):
    def __init__(self, params, skip):
        self.skip = {id(p) for p in skip}
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) not in self.skip:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(p.grad, alpha=-group["lr"])

optimizer = Skips(model.parameters(), [model[1].weight, model[1].bias])
loss().backward()
optimizer.step()
"""
    assert run(text, "--json").exit_code == 0


# ---- what goes wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1\n",
            "train.py ended before any torch optimizer took a step, and made none: give the script that trains",
        ),
        (
            "def main():\n    torch.optim.SGD(model.parameters())\n    torch.optim.AdamW(model.parameters())\nmain()\n",
            r"ended before any torch optimizer took a step \(it made AdamW, SGD\): let it train for at least one step",
        ),
        (
            "x = os.environ['LOCAL_RANK']\n",
            "train.py reads LOCAL_RANK from the environment, which torchrun sets: start it with `torchrun --nproc-per-node 1 "
            "-m -- halflife audit --run train.py -- ...`",
        ),
        (
            "torch.distributed.init_process_group('gloo')\n",
            "train.py reads RANK from the environment, which torchrun sets",
        ),
        ("{}['RANKS']\n", r"train.py raised KeyError: 'RANKS' \(train.py, line 12\) before any"),
        (
            "def f():\n    1 / 0\nf()\n",
            r"train.py raised ZeroDivisionError: division by zero \(train.py, line 13\) before any",
        ),
        (
            "sys.exit('no data')\n",
            r"train.py called exit\('no data'\) \(train.py, line 12\) before any optimizer took a step",
        ),
        ("sys.exit()\n", r"train.py called exit\(None\) \(train.py, line 12\) before any"),
        ("os._exit(0)\n", r"train.py called os._exit\(0\) \(train.py, line 12\) before any"),
        (
            "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\npool.submit(int)\n",
            "train.py ended before any torch optimizer took a step, and made none: give the script that trains",
        ),
        ("x = (\n", r"train.py raised SyntaxError: .* \(train.py, line 12\) before any"),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--data', required=True)\np.parse_args()\n",
            r"ended with exit code 2, as scripts do that get wrong arg.*as in `halflife audit --run train.py -- --data",
        ),
    ],
)
def test_scripts_without_a_step(run: Run, text: str, message: str) -> None:
    result = run(text)
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    with pytest.raises(UserError, match=message):
        raise result.exception
    if "argparse" in text:
        assert "usage: train.py [-h] --data DATA" in result.stderr
    assert not torch_optimizer._global_optimizer_pre_hooks


def test_steps_in_other_processes_are_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([3.0, 12.4])
    monkeypatch.setattr(script, "_seconds_of_children", lambda: next(seconds))
    with pytest.raises(
        UserError, match=r"in its own process \(those that it started ran for 9 s, and their steps are not"
    ):
        found_in("subprocess = 1\n")


def test_processes_that_ran_are_counted() -> None:
    before = script._seconds_of_children()
    subprocess.run([sys.executable, "-c", "sum(range(10 ** 6))"], check=True)
    assert 0.01 <= script._seconds_of_children() - before < 10.0


def test_models_stand_in_the_order_of_their_optimizers(run: Run) -> None:
    text = """
layers = [nn.Linear(2, 2) for _ in range(3)]
optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in layers[::-1]]
optimizers[0].step()
"""
    found = found_in(text)
    assert found.models == ("Linear", "Linear_2", "Linear_3")
    assert found.model is not None
    first = {optimizer.param_groups[0]["params"][0]: number for number, optimizer in enumerate(found.optimizers)}
    assert [first[part.weight] for part in found.model.children()] == [0, 1, 2]


def test_own_options_behind_the_dashes_are_told(run: Run) -> None:
    """A script may have an option of the same name: it runs, and one line says where the words went."""
    text = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\noptimizer.step()\n"
    note = "note: --expect and --json stood after -- and went to your own code; options of halflife stand before --"
    result = run(text, arguments=("--expect", "l2:0.1", "--json"))
    assert result.exit_code == 0, (result.output, result.exception)
    assert note in result.stderr
    assert "note:" not in run(text, arguments=("--steps", "1")).stderr
    result = run("raise ValueError('--expect')\n", arguments=("--expect", "l2:0.1"))
    assert str(result.exception).endswith(
        "passes to it; --expect stood after -- and went to your own code; options of halflife stand before --"
    )


def test_ctrl_c_stays_ctrl_c(run: Run) -> None:
    assert run("raise KeyboardInterrupt\n").exit_code == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothere.py", "--run"], "there is no file nothere.py; give the path of the script that trains"),
        (["train.py:make", "--run"], "there is no file train.py:make; with --run the script is named alone"),
        (
            ["pack.train", "--run"],
            "there is no file pack.train; a module is run by `halflife audit --run -m pack.train`",
        ),
        (["-m", "nothere.at.all", "--run"], "No module named .*nothere.*give the name that `python -m` takes"),
        (["-m", "pack.train"], "-m goes with --run; a function of a module is named pack.train:function"),
        (["train.py"], "or run the whole script up to its first step: halflife audit train.py --run"),
        (["train.py", "--run", "--with", "x=1"], "with --run the script's own arguments stand after --"),
        (["train.py", "--run", "--time-limit", "0"], r"--time-limit must be > 0 and at most 1e\+09 seconds, got 0"),
        (["train.py", "--run", "--time-limit", "inf"], r"--time-limit must be > 0 and at most 1e\+09 seconds, got inf"),
        (["train.py", "--run", "--time-limit", "nan"], r"--time-limit must be > 0 and at most 1e\+09 seconds, got nan"),
        ([".", "--run"], r"^\. is a folder; give the path of the script in it that trains"),
        (["", "--run"], "there is no file ''; give the path of the script that trains"),
        (["train.py", "--run", "--total-steps", "0"], "--total-steps must be at least 1, got 0"),
        (["train.py", "--run", "--device=cpu"], "audit has no option --device; options of your script stand after --"),
    ],
)
def test_mistakes_on_the_command_line(run: Run, words: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["audit", *words])
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    with pytest.raises(UserError, match=message):
        raise result.exception


def test_what_goes_wrong_at_the_first_step_has_code_2(run: Run) -> None:
    text = "optimizer = torch.optim.SGD(model.parameters())\nloss().backward()\noptimizer.step()\n"
    result = run(text, "--expect", "matrx=none")
    assert result.exit_code == 2
    assert "error: 'matrx' matches no trainable parameter" in result.stderr


# ---- as a process of its own


LOADER = """
import atexit, subprocess
from torch.utils.data import DataLoader, TensorDataset


class Model(nn.Sequential):
    def __del__(self):
        print("freed late")


def main(context):
    model = Model(nn.Linear(3, 4), nn.Linear(4, 1))
    data = TensorDataset(torch.ones(64, 3))
    loader = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context=context, persistent_workers=True)
    background = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    atexit.register(os._exit, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    print("a line on standard output")
    while True:
        try:
            for (x,) in loader:
                model(x).sum().backward()
                optimizer.step()
                pathlib.Path("after").touch()
        except:
            pass
        finally:
            pathlib.Path("after").touch()


if __name__ == "__main__":
    main(sys.argv[1])
"""


def process(folder: Path, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    if text is not None:
        (folder / "train.py").write_text(HEAD + text, encoding="utf-8")
    command = [sys.executable, "-m", "halflife", "audit", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_the_process_ends_whatever_the_script_has_started(tmp_path: Path, context: str) -> None:
    """Workers, a process in the background, an exit handler with a code of its own, an endless loop that catches all."""
    words = ["train.py", "--run", "--json", "--expect", "decoupled:0.2", "--", context]
    done = process(tmp_path, *words, text=LOADER)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["ok"] is False
    assert "does not hold: all parameters that decay: expected decoupled:0.2" in done.stderr
    assert "a line on standard output" in done.stderr
    assert "Traceback" not in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["train.py"]


@pytest.mark.slow
def test_the_first_of_the_processes_that_the_script_forks_reports(tmp_path: Path) -> None:
    text = """
import multiprocessing, time


def train(number):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    loss().backward()
    optimizer.step()
    pathlib.Path("after").touch()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
"""
    done = process(tmp_path, "train.py", "--run", "--json", "--expect", "decoupled:0.2", text=text)
    assert done.returncode == 1, done.stderr
    assert {row["parameter"] for row in json.loads(done.stdout)["rows"]} == ALL
    assert [each.name for each in tmp_path.iterdir()] == ["train.py"]


@pytest.mark.slow
def test_a_script_that_takes_no_step_in_time(tmp_path: Path) -> None:
    text = "import time\ntry:\n    time.sleep(100)\nfinally:\n    print('late')\n"
    done = process(tmp_path, "train.py", "--run", "--time-limit", "3", text=text)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == (
        "error: no optimizer of train.py took a step within 3 s; it is at train.py, line 14: give it more time "
        "(--time-limit), or less to do before its first step"
    )


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    text = "import time\npathlib.Path('up').touch()\ntry:\n    time.sleep(100)\nfinally:\n    pathlib.Path('late').touch()\n"
    (tmp_path / "train.py").write_text(HEAD + text, encoding="utf-8")
    command = [sys.executable, "-m", "halflife", "audit", "train.py", "--run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        for _ in range(600):
            if (tmp_path / "up").exists():
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=60)
    assert (running.returncode, out, errors.strip()) == (130, "", "stopped")
    assert not (tmp_path / "late").exists()


@pytest.mark.slow
def test_rank_zero_reports_under_torchrun(tmp_path: Path) -> None:
    text = """
import torch.distributed as dist
dist.init_process_group("gloo")
wrapped = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, weight_decay=0.1)
wrapped(torch.ones(2, 3)).sum().backward()
optimizer.step()
pathlib.Path("after").touch()
"""
    (tmp_path / "train.py").write_text(HEAD + text, encoding="utf-8")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "--", "halflife", "audit", "train.py", "--run", "--json", "--expect", "decoupled:0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["found"]["models"] == ["Sequential"]
    assert {row["parameter"] for row in document["rows"]} == ALL
    assert not (tmp_path / "after").exists()
