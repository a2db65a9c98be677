"""What the tests of several ranks run: tiny trainings under every engine, killed, refused, resumed elsewhere.

Each function gets an empty folder and returns plain values for the test to judge.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_training
import torch
from rank_worlds import Ended, World
from tiny_training import TinyLM, Toy, ToyLoader, killed_runs, trainer

from ttt.train.engines import world
from ttt.types import LossTerm, LossTerms

ENGINES: dict[str, dict[str, Any]] = {
    "local": {},
    "zero1": {"engine": "deepspeed", "zero_stage": 1},
    "zero2": {"engine": "deepspeed", "zero_stage": 2},
    "zero3": {"engine": "deepspeed", "zero_stage": 3},
}
MICRO_BATCHES = 4  # of one update, over all ranks


def lines(folder: Path) -> list[dict]:
    """Those of a run; nothing where it has not come so far, so that the test says how its ranks ended."""
    return tiny_training.lines(folder) if (folder / "metrics.jsonl").is_file() else []


def settings(engine: str, folder: Path, size: int) -> dict[str, Any]:
    """Fields of the train section.  Stage 3 leaves small parameters whole unless it is told not to."""
    values = {
        **ENGINES[engine], "accumulate": MICRO_BATCHES // size, "steps": 6, "save_every_steps": 3, "log_every_steps": 1,
        "eval_every_steps": 3, "clip_norm": 0.1, "lr": 0.02,
    }  # fmt: skip
    if engine == "zero3":
        path = folder / "zero3.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
        values["deepspeed"] = str(path)
    return values


def train(
    engine: str, folder: Path, size: int, loader: type[ToyLoader] = ToyLoader, objective: Callable[[], Toy] = Toy,
    model: Callable[[int], torch.nn.Module] = TinyLM, **more: Any,
) -> World:  # fmt: skip
    """Start a run of `tiny_training` on ``size`` ranks."""
    values = {**settings(engine, folder.parent, size), **more}

    def work() -> int:
        rank, ranks = world()
        # Rank zero's weights count.
        return trainer(folder, loader(rank, ranks), model(rank), objective(), **values).run().exit_code

    return World(size, work, folder.parent / f"{folder.name}-logs")


def told(ended: list[Ended]) -> dict[str, Any]:
    return {
        "status": [e.status for e in ended], "text": [e.text[-4000:] for e in ended], "seconds": [e.seconds for e in ended],
    }  # fmt: skip


def in_update(step: int, act: Callable[[ToyLoader], None]) -> type[ToyLoader]:
    """A loader that calls ``act(loader)`` when update ``step`` (from 0) asks for its first batch."""

    class Acting(ToyLoader):
        def micro_batch(self, update: int, index: int):
            if update == step and index == 0:
                act(self)
            return super().micro_batch(update, index)

    return Acting


class Untargeted(ToyLoader):
    """Rank zero's second micro-batch has nothing to predict: no rank may wait for it."""

    def micro_batch(self, update: int, index: int):
        batch = super().micro_batch(update, index)
        if index * self.world + self.rank == 2:
            batch.target.zero_()
        return batch


def engines(root: Path) -> dict[str, Any]:
    """Uninterrupted runs: one process, and every engine on two ranks.  Then resumes on other engines and ranks."""
    found: dict[str, Any] = {}
    for name, engine, size in [("one", "local", 1), *((e, e, 2) for e in ENGINES)]:
        found[name] = told(train(engine, root / name, size, Untargeted).wait())
        found[name]["lines"] = lines(root / name)
    for name, source, engine, size in (
        ("zero3 to local on one", "zero3", "local", 1), ("local on one to zero2", "one", "zero2", 2),
        ("zero2 to zero2 on one", "zero2", "zero2", 1),
    ):  # fmt: skip
        shutil.copytree(root / source, root / name)
        shutil.rmtree(root / name / "checkpoints/step-00000006")
        found[name] = told(train(engine, root / name, size, Untargeted).wait())
        found[name]["lines"] = lines(root / name)
    return found


def failures(root: Path) -> dict[str, Any]:
    """A rank that is killed, a second run in the folder, a signal to one rank, a loss that is not finite, refusals."""
    found: dict[str, Any] = {}

    def die(loader: ToyLoader) -> None:
        if loader.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    for engine in ("local", "zero2"):
        started = train(engine, root / f"lost {engine}", 2, in_update(4, die), rank_timeout_s=20)
        found[f"lost {engine}"] = told(started.wait())
        for name in (f"lost {engine}", f"whole {engine}"):  # the same command again, and without a stop
            found[f"end of {name}"] = told(train(engine, root / name, 2, rank_timeout_s=20).wait())
            found[f"end of {name}"]["lines"] = lines(root / name)

    def stay(loader: ToyLoader) -> None:
        (root / "here").touch()
        while not (root / "go").exists():
            time.sleep(0.01)

    first = train("zero2", root / "signal", 2, in_update(4, stay))
    while not (root / "here").exists():
        time.sleep(0.01)
    found["second"] = told(train("zero2", root / "signal", 2).wait())
    first.kill(1, signal.SIGTERM)
    (root / "go").touch()
    found["signal"] = told(first.wait())
    found["signal"]["kept"] = sorted(p.name for p in (root / "signal/checkpoints").iterdir())

    class Inf(Toy):
        def terms(self, model, plan):
            made = super().terms(model, plan)
            if plan.input_ids.shape[0] == 5:
                return LossTerms({"ar": LossTerm(made.terms["ar"].sum * float("inf"), 1.0)})
            return made

    def widen(loader: ToyLoader) -> None:
        if loader.rank == 1:
            from tiny_training import batch

            loader.micro_batch = lambda update, index: batch(55, 5)  # type: ignore[method-assign]

    found["nan"] = told(train("zero2", root / "nan", 2, in_update(3, widen), Inf, save_every_steps=1).wait())
    found["nan"]["files"] = sorted(p.name for p in (root / "nan").glob("crash-*/*"))

    def full(loader: ToyLoader) -> None:
        import errno

        import safetensors.torch

        real = safetensors.torch.save_file

        def save_file(tensors, path, *rest, **more):
            if ".step-00000006" in str(path) and loader.rank == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(tensors, path, *rest, **more)

        safetensors.torch.save_file = save_file

    found["disk"] = told(train("zero2", root / "disk", 2, in_update(4, full)).wait())
    found["disk"]["files"] = sorted(p.name for p in (root / "disk/checkpoints").iterdir())

    class Spare(TinyLM):
        def __init__(self, seed: int = 0) -> None:
            super().__init__(seed)
            self.spare = torch.nn.Linear(2, 2)

    found["unused"] = told(train("zero2", root / "unused", 1, model=Spare).wait())

    class Steep(TinyLM):
        def __init__(self, seed: int = 0) -> None:
            super().__init__(seed)
            self.mix.weight.register_hook(lambda g: g * float("inf"))

    for engine in ("zero2", "zero3"):
        name = f"gradient {engine}"
        found[name] = told(train(engine, root / name, 1, model=Steep).wait())
    return found


def killed(root: Path, *kills: str) -> list[dict[str, Any]]:
    """Runs in ``root``, each killed in an update (``update:5``) or while the checkpoint of a step is written (``save:8``)."""
    return killed_runs(str(root), *kills)


def variants(root: Path) -> dict[str, Any]:
    """Offloading, a published set of options, adapters, and a rank that falls silent."""
    from ttt.check.world import batch, network, tokenizer
    from ttt.config.schema import LoraSection, ModelSection
    from ttt.model.causal_lm import build_lm
    from ttt.registry.families import INITIALIZER, OBJECTIVE

    found: dict[str, Any] = {}

    def stop(loader: ToyLoader) -> None:
        if loader.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    found["silent"] = told(train("zero2", root / "silent", 2, in_update(4, stop), rank_timeout_s=3).wait(40))
    zero = {
        "stage": 3, "allgather_partitions": True, "allgather_bucket_size": 5e8, "overlap_comm": True, "reduce_scatter": True,
        "contiguous_gradients": True, "sub_group_size": 1e9, "reduce_bucket_size": "auto", "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_param_persistence_threshold": 0,
    }  # fmt: skip
    options = root / "options.json"
    options.write_text(
        json.dumps({"zero_optimization": zero, "bf16": {"enabled": "auto"}, "zero_allow_untested_optimizer": True})
    )
    runs: list[tuple[str, str, int, dict[str, Any]]] = [
        ("one", "local", 1, {}), ("options", "zero3", 2, {"deepspeed": str(options)}),
        ("offload 2", "zero2", 2, {"offload": ["optimizer"]}), ("offload 3", "zero3", 2, {"offload": ["optimizer", "params"]}),
    ]  # fmt: skip
    for name, engine, size, more in runs:
        found[name] = told(train(engine, root / name, size, Untargeted, **more).wait())
        found[name]["lines"] = lines(root / name)
        if name.startswith("offload"):
            shutil.rmtree(root / name / "checkpoints/step-00000006")
            found[f"{name} again"] = told(train(engine, root / name, size, Untargeted, **more).wait())
            found[f"{name} again"]["lines"] = lines(root / name)
    base = root / "base"
    base.mkdir()
    network().save(base)
    init = INITIALIZER.build("normal", "init")
    section = ModelSection(path=str(base), lora=LoraSection(rank=4, dropout=0.0), init=init)
    objective = OBJECTIVE.build({"name": "ttt"}, "objective")

    class Loader(ToyLoader):
        def micro_batch(self, update: int, index: int):
            return batch(10 * update + index * self.world + self.rank)

    def adapted(name: str, engine: str, size: int) -> None:
        def work() -> int:
            from tiny_training import config

            from ttt.train.trainer import Trainer

            rank, ranks = world()
            model = build_lm(section, tokenizer(), 0).train()
            made = config(root / name, **settings(engine, root, size))
            return Trainer(made, model, objective, Loader(rank, ranks), [batch(7)]).run().exit_code

        found[name] = told(World(size, work, root / f"{name}-logs").wait())
        found[name]["lines"] = lines(root / name)

    adapted("lora", "local", 1)
    adapted("lora zero2", "zero2", 2)
    adapted("lora zero3", "zero3", 2)
    before = found["lora zero3"]
    shutil.rmtree(root / "lora zero3/checkpoints/step-00000006")
    adapted("lora zero3", "zero3", 2)
    found["lora zero3 again"], found["lora zero3"] = found["lora zero3"], before
    return found


def frozen(root: Path) -> dict[str, Any]:
    """Text rows held still under weight decay by every kind of engine, and a resume under ZeRO-3."""
    import ttt.model.cross_entropy
    from ttt.check.world import batch, network, tokenizer
    from ttt.config.schema import ModelSection
    from ttt.model.causal_lm import start_lm
    from ttt.registry.families import OBJECTIVE

    ttt.model.cross_entropy.CHUNK_BYTES["cpu"] = 1
    ttt.model.cross_entropy.LEAST_ROWS = 4  # ranks have different numbers of chunks
    base = root / "base"
    base.mkdir()
    network().save(base)
    section = ModelSection(freeze="text_rows")
    objective = OBJECTIVE.build({"name": "ar"}, "objective")

    class Loader(ToyLoader):
        def micro_batch(self, update: int, index: int):
            return batch(10 * update + index * self.world + self.rank)

    def train(name: str, engine: str, size: int) -> World:
        def work() -> int:
            from tiny_training import config

            from ttt.train.trainer import Trainer

            rank, ranks = world()
            model = start_lm(section, tokenizer(), 0, start=base)
            made = config(root / name, **{**settings(engine, root, size), "weight_decay": 0.5})
            return Trainer(made, model, objective, Loader(rank, ranks), [batch(7)]).run().exit_code

        return World(size, work, root / f"{name}-logs")

    found: dict[str, Any] = {}
    for name, engine, size in (
        ("one", "local", 1),
        ("local", "local", 2),
        ("zero2", "zero2", 2),
        ("zero3", "zero3", 2),
    ):
        found[name] = told(train(name, engine, size).wait())
        found[name]["lines"] = lines(root / name)
    shutil.copytree(root / "zero3", root / "again")
    shutil.rmtree(root / "again/checkpoints/step-00000006")
    found["again"] = told(train("again", "zero3", 2).wait())
    found["again"]["lines"] = lines(root / "again")
    return found


def endurance(root: Path, engine: str, ranks: int, kills: int, seed: int, steps: int) -> dict[str, Any]:
    """``kills`` times kill -9 at a random moment; then to the end, against an uninterrupted run.

    Every third kill falls into a save, every fourth into the start, the others behind a random step.
    """
    draw = random.Random(seed)
    more = {"steps": steps, "save_every_steps": 4, "eval_every_steps": 20}
    whole = told(train(engine, root / "whole", ranks, **more).wait(600))
    moments: list[str] = []
    folder, before_it = root / "killed", root / "before"
    hurry = 1.0
    while len(moments) < kills:
        shutil.rmtree(before_it, ignore_errors=True)
        if folder.exists():
            shutil.copytree(folder, before_it)
        done = max((int(p.parent.name[5:]) for p in (folder / "checkpoints").glob("step-*/COMPLETE")), default=0)
        kind = "save" if len(moments) % 3 == 2 else "start" if len(moments) % 4 == 3 else "step"
        # The kills are spread over the first half: the last one must not come too late for a run that is fast.
        aim = done + hurry * draw.uniform(0, 2 * max(0, steps // 2 - done) / (kills - len(moments) + 1))
        before = set((folder / "checkpoints").glob(".*"))
        began = time.time()
        running = train(engine, folder, ranks, **more)
        while kind != "start" and time.time() - began < 60:
            new = set((folder / "checkpoints").glob(".*")) - before
            if new if kind == "save" else _logged(folder, began) >= aim:
                break
            before &= set((folder / "checkpoints").glob(".*"))  # a leftover that was removed may come again
            time.sleep(0.0005)
        time.sleep(hurry * draw.uniform(0, {"save": 0.015, "start": 0.4, "step": 0.05}[kind]))
        for rank in draw.sample(range(ranks), ranks):
            try:
                running.kill(rank)
            except ProcessLookupError:
                pass
        ended = running.wait()
        if any(e.status == 0 for e in ended) and hurry > 1e-3:
            # The run was done first, as on a fast machine: as if it had not been, and sooner.
            hurry /= 2
            shutil.rmtree(folder)
            if before_it.exists():
                shutil.copytree(before_it, folder)
            continue
        kept = sorted(p.name for p in (folder / "checkpoints").glob("*"))
        moments.append(
            f"{kind}: step {_logged(folder, 0.0)} logged, left {', '.join(kept) or 'nothing'}; {ended[0].status}"
        )
    ended = told(train(engine, folder, ranks, **more).wait(600))
    return {"whole": whole, "moments": moments, "end": ended, "lines": [lines(root / "whole"), lines(folder)],
            "kept": sorted(p.name for p in (folder / "checkpoints").glob("*"))}  # fmt: skip


def _logged(folder: Path, since: float) -> int:
    """The last step in the log, if the log was written after ``since``."""
    path = folder / "metrics.jsonl"
    try:
        if path.stat().st_mtime < since:
            return -1
        whole = path.read_text().rpartition("\n")[0].splitlines()
    except OSError:
        return -1
    return json.loads(whole[-1])["step"] if whole else 0


def language_model(root: Path) -> dict[str, Any]:
    """A Hugging Face network under ZeRO-3: logits in chunks, decoding in between, bfloat16, a plain folder in the end."""
    import ttt.model.cross_entropy
    from ttt.check.world import batch, network
    from ttt.registry.families import OBJECTIVE

    ttt.model.cross_entropy.CHUNK_BYTES["cpu"] = 1
    ttt.model.cross_entropy.LEAST_ROWS = 4  # ranks have different numbers of chunks
    made = network()
    objective = OBJECTIVE.build({"name": "ttt"}, "objective")

    class Loader(ToyLoader):
        def micro_batch(self, update: int, index: int):
            return batch(10 * update + index * self.world + self.rank)

    def callback(running, step):
        seen = batch(3)
        for _ in range(1 + running.engine.rank):  # the ranks need not keep step here
            with torch.no_grad():
                hidden = running.model.hidden(seen.ids, seen.position, None)
        return {"eval/hidden": float(running.model.head(hidden).float().mean())}

    def start(engine: str, name: str, size: int, **more: Any) -> World:
        values = {**settings(engine, root, size), "steps": 2, "save_every_steps": 1, "eval_every_steps": 1, **more}

        def work() -> int:
            from tiny_training import config

            from ttt.train.trainer import Trainer

            rank, ranks = world()
            run = Trainer(
                config(root / name, **values),
                made.train(),
                objective,
                Loader(rank, ranks),
                [batch(7)],
                callbacks=[callback],
            )
            return run.run().exit_code

        return World(size, work, root / f"{name}-logs")

    found: dict[str, Any] = {}
    for engine, name, size, more in (
        ("local", "one", 1, {}), ("zero3", "zero3", 2, {}), ("local", "one-bf16", 1, {"autocast": "bfloat16"}),
        ("zero3", "zero3-bf16", 2, {"autocast": "bfloat16"}),
    ):  # fmt: skip
        found[name] = told(start(engine, name, size, **more).wait())
        found[name]["lines"] = lines(root / name)
        if name == "zero3-bf16":
            shutil.copytree(root / name, root / "again")
            shutil.rmtree(root / "again/checkpoints/step-00000002")
            found["again"] = told(start(engine, "again", size, **more).wait())
            found["again"]["lines"] = lines(root / "again")
    found["folder"] = str(root / "zero3/checkpoints/step-00000002/model")
    found["one folder"] = str(root / "one/checkpoints/step-00000002/model")
    return found


def float16(root: Path) -> dict[str, Any]:
    """ZeRO in float16 from a scale that overflows, as one run and as two."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda self: True  # slow, but it computes
    own = root / "float16.json"
    shards = {"stage3_param_persistence_threshold": 0}  # small ones, too
    scaling = {"enabled": "auto", "initial_scale_power": 22, "hysteresis": 1}
    own.write_text(json.dumps({"zero_optimization": shards, "fp16": scaling}))

    class Model(TinyLM):
        def forward(self, x):
            hidden = self.embed(x.input_ids) + (x.position_ids[..., None] / 10).to(self.embed.weight.dtype)
            return self.head(self.mix(self.norm(hidden)).flatten(0, 1)[x.select]).float() / 8

    found: dict[str, Any] = {}
    for engine in ("zero1", "zero2", "zero3"):
        values = {
            "autocast": "float16", "deepspeed": str(own), "model": Model, "eval_every_steps": 1,
            "clip_norm": 0.0,
        }  # fmt: skip
        for name, stops in ((engine, ({},)), (f"{engine} again", ({"max_tokens": 80}, {}))):
            for more in stops:
                found[name] = told(train(engine, root / name, 2, **{**values, **more}).wait())
            found[name]["lines"] = lines(root / name)
    return found
