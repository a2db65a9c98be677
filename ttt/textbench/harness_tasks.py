"""Finding the harness's tasks, by name or by file, before any model is loaded; local data beside a task's YAML."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttt.errors import ConfigError, DataError, MissingExtraError, TttError, suggest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """Tasks that were asked for.  ``loadable``: what the harness's manager loads; ``files``: YAML and data files of local tasks."""

    manager: Any
    loadable: list[Any]
    files: list[Path] = field(default_factory=list)


def harness_version() -> str:
    """Version of the installed harness.  Raises `MissingExtraError` naming the extra when there is none."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            "lm-evaluation-harness is not installed; pip install 'ttt-speech[lm-eval]' (or lm_eval)"
        ) from None


def choose(names: Sequence[str], folders: Sequence[str | Path] = ()) -> Chosen:
    """Find tasks, groups and tags: YAML files by path, names in ``folders``, then the harness's own names.

    The harness's own collection (thousands of files) is read only when a name is not found before it.  Raises
    `ConfigError` for unknown names, `DataError` for folders and files that cannot be read.
    """
    harness_version()
    if not names:
        raise ConfigError("--tasks: missing; name tasks of the harness or YAML files")
    from lm_eval.tasks import TaskManager

    paths = [name for name in names if name.endswith((".yaml", ".yml"))]
    local: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of tasks (--task-dir)")
        for file in sorted(folder.rglob("*.yaml")):
            read = _read(file)
            for name in (read.get("task"), read.get("group")):
                if isinstance(name, str):
                    if name in local:
                        raise DataError(f"{file}: task {name!r} is already defined in {local[name]}; rename one")
                    local[name] = file
    for path in map(Path, paths):
        if not isinstance(_read(path).get("task"), str):
            raise DataError(f"{path}: no 'task: NAME' in it; groups are found by name in --task-dir")
    wanted = [name for name in names if name not in paths]
    tags = {tag for file in local.values() for tag in _tags(_read(file))}
    foreign = [name for name in wanted if name not in local and name not in tags]
    manager = TaskManager(include_path=[str(f) for f in folders], include_defaults=bool(foreign))
    for name in foreign:
        if name not in manager.all_tasks:
            known = [*local, *tags, *manager.all_tasks]
            hint = suggest(name, known) or (f" Tasks in --task-dir: {', '.join(local)}." if local else "")
            raise ConfigError(
                f"--tasks: no task, group or tag named {name!r}.{hint} A task of your own: give its YAML file"
            )
    for name, file in local.items():
        config = _with_local_data(file)
        if isinstance(config, Mapping) and name == config["task"]:  # groups and tags find it there too
            manager.task_index[name].cfg, manager.task_index[name].yaml_path = dict(config), None
    loadable = [_with_local_data(Path(name)) if name in paths else name for name in names]
    # which tasks a tag or a group of the folder takes is the harness's to say: all of the folder count
    all_ = bool(tags.intersection(wanted)) or any("group" in _read(local[n]) for n in wanted if n in local)
    used = [*map(Path, paths), *(file for name, file in local.items() if all_ or name in wanted)]
    data = [f for file in used for f in _data_files(_with_local_data(file))]
    return Chosen(manager, loadable, list(dict.fromkeys([*used, *data])))


def load(chosen: Chosen) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tasks, groups) by name, their data read.  Raises `DataError` naming the task whose data cannot be had."""
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for item in chosen.loadable:
        shown = item["task"] if isinstance(item, Mapping) else item
        try:
            found = chosen.manager.load([item])
        except TttError:
            raise
        except Exception as error:  # yaml, datasets, jinja and task code raise anything
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"task {shown!r} cannot be loaded: {type(error).__name__}: {reason}; offline, a task needs local data "
                "(dataset_path: json | csv | parquet with data_files)"
            ) from error
        twice = set(tasks) & set(found["tasks"])
        if twice:
            raise ConfigError(f"--tasks: {min(twice)!r} is asked for twice")
        tasks.update(found["tasks"])
        groups.update(found.get("groups", {}))
    return tasks, groups


def check_documents(tasks: Mapping[str, Any], limit: int = 0) -> None:
    """Render the first ``limit`` documents (0: all) of every task.  Raises `DataError` naming the first that cannot be asked."""
    for name, task in tasks.items():
        documents = task.eval_docs
        for number, document in zip(range(limit or len(documents)), documents):
            try:
                text, target = task.doc_to_text(document), task.doc_to_target(document)
                if task.OUTPUT_TYPE == "multiple_choice":
                    choices = task.doc_to_choice(document)
                    gold = text if task.multiple_input else target
                    for one in gold if isinstance(gold, list) else [gold]:
                        if not (one in choices if isinstance(one, str) else 0 <= one < len(choices)):
                            raise ValueError(f"the answer {one!r} is none of its {len(choices)} choices")
            except Exception as error:  # templates and task code raise anything
                reason = " ".join(str(error).split())[:200]
                raise DataError(
                    f"task {name!r}, document {number}: {type(error).__name__}: {reason}; mend the data"
                ) from error


def task_digest(task: Any, documents: Iterable[Any]) -> str:
    """Digest of what decides a task's score beside the model: its configuration, its code, and the documents in use.

    Where the documents lie does not count; the number of examples is told apart.
    """
    total = hashlib.blake2b(digest_size=8)
    config = {k: v for k, v in task.dump_config().items() if k not in ("metadata", "dataset_kwargs", "num_fewshot")}
    total.update(json.dumps(config, sort_keys=True, default=_named).encode())
    for document in documents:
        total.update(json.dumps(document, sort_keys=True, default=_named).encode())
    return total.hexdigest()


def _named(value: Any) -> str:
    """What JSON has no word for, without its place in memory."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _read(path: Path) -> dict[str, Any]:
    """A task file without its functions."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise DataError(f"{path}: no such task file")
    try:
        config = load_yaml(path, resolve_func=False)
    except Exception as error:
        raise DataError(
            f"{path}: not a task file: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    return config


def _tags(config: Mapping[str, Any]) -> list[str]:
    tags = config.get("tag") or []
    return [tags] if isinstance(tags, str) else list(tags)


def _with_local_data(path: Path) -> Any:
    """The task of a file; ``data_files`` that lie beside it are found from any working folder."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = _read(path)
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if not files:
        return str(path)
    try:
        config = load_yaml(path, resolve_func=True)
    except Exception as error:
        raise DataError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    config["dataset_kwargs"] = {**config["dataset_kwargs"], "data_files": _beside(files, path.parent)}
    return config


def _data_files(config: Any) -> list[Path]:
    """The local data files of a task, if there are any."""

    def flat(files: Any) -> list[Path]:
        if isinstance(files, Mapping):
            files = list(files.values())
        if isinstance(files, list):
            return [f for one in files for f in flat(one)]
        return [Path(files)] if Path(str(files)).is_file() else []

    return flat((config.get("dataset_kwargs") or {}).get("data_files") or []) if isinstance(config, Mapping) else []


def _beside(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {split: _beside(value, folder) for split, value in files.items()}
    if isinstance(files, (list, tuple)):
        return [_beside(value, folder) for value in files]
    near = folder / str(files)
    if near.exists():
        return str(near)
    if not Path(files).exists() and "://" not in str(files) and not any(c in str(files) for c in "*?["):
        raise DataError(f"{near}: no such data file (data_files of a task in {folder})")
    return files
