"""The file that describes a table of experiments, read strictly: ``egs/mini_talk/ablations/*.yaml``.

    title: Noise schedules                      # required
    needs: [./egs/mini_talk/run.sh --stop-stage 3]   # commands that make what the cells read
    base: [egs/mini_talk/conf/paper.yaml]       # recipe files, later ones win; paths from the working folder
    settings: {train.steps: 600}                # over the files, for every row: dotted keys or blocks
    seeds: 3                                    # a number (1 .. n) or a list
    baseline: linear                            # the row others are tested against
    metrics: {tts/judged_wer: TTS WER}          # a list of keys, or key -> printed name
    splits: [test]                              # decode data.dir/SPLIT.jsonl; or examples: [FILES]; or as the recipe says
    budget: equal updates and tokens            # printed beside what was measured
    note: ...                                   # printed below the table
    resamples: 2000                             # of intervals and tests
    rows:
      linear: {label: linear}                   # a row's name becomes a folder
      cosine: {label: cosine, config: extra.yaml, settings: {objective.noise: cosine}}
      fast: {label: fast, decode_only_of: linear, settings: {eval.sampler: {diffusion_steps: 24}}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.errors import ConfigError, suggest
from ttt.io.yaml_input import read_yaml

KEYS = (
    "title", "note", "budget", "needs", "base", "settings", "rows", "seeds", "baseline", "metrics", "splits", "examples",
    "resamples",
)  # fmt: skip
ROW_KEYS = ("label", "config", "settings", "decode_only_of")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Set for every cell by the program itself.
_RESERVED = ("run.dir", "run.seed", "run.overwrite", "eval.out", "eval.checkpoint")


@dataclass(frozen=True)
class RowSpec:
    """One row: ``files`` and ``settings`` on top of the table's; with ``decode_only_of`` it uses that row's training."""

    name: str
    label: str
    files: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()
    decode_only_of: str = ""


@dataclass(frozen=True)
class TableSpec:
    """A whole table file; ``metrics`` maps keys to printed names, ``needs`` are the commands that make what its cells read."""

    path: Path
    title: str
    base: tuple[Path, ...]
    settings: tuple[str, ...]
    rows: Mapping[str, RowSpec]
    seeds: tuple[int, ...]
    baseline: str
    metrics: Mapping[str, str]
    note: str = ""
    budget: str = ""
    resamples: int = 1000
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


def read_table(path: str | Path) -> TableSpec:
    """Read and check; every refusal is a `ConfigError` naming the file and the key."""

    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such table file; shipped ones are in egs/mini_talk/ablations")
    raw = read_yaml(path, "see egs/mini_talk/ablations for tables", error=ConfigError)
    at = str(path)
    _known(raw, KEYS, at)
    for key in ("title", "base", "rows", "baseline", "metrics"):
        if key not in raw:
            raise ConfigError(f"{at}: {key}: missing")
    rows = _rows(raw["rows"], path)
    baseline = raw["baseline"]
    if baseline not in rows:
        raise ConfigError(f"{at}: baseline: no row named {baseline!r}.{suggest(str(baseline), rows)} Rows: {', '.join(rows)}")
    if "splits" in raw and "examples" in raw:
        raise ConfigError(f"{at}: give splits or examples, not both")
    resamples = raw.get("resamples", 1000)
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise ConfigError(f"{at}: resamples: must be a whole number >= 1, got {resamples!r}")
    decoded: list[str] = []
    if "splits" in raw:
        decoded = [f"${{data.dir}}/{split}.jsonl" for split in _texts(raw["splits"], f"{at}: splits")]
    if "examples" in raw:
        decoded = _texts(raw["examples"], f"{at}: examples")
    settings = _settings(raw.get("settings"), f"{at}: settings")
    return TableSpec(
        path=path, title=_text(raw["title"], f"{at}: title"), base=_files(raw["base"], path, f"{at}: base"),
        settings=(*settings, *([_override("eval.examples", decoded)] if decoded else [])), rows=rows,
        seeds=seeds_of(raw.get("seeds", 1), f"{at}: seeds"), baseline=baseline,
        metrics=_metrics(raw["metrics"], f"{at}: metrics"), note=_text(raw.get("note", ""), f"{at}: note"),
        budget=_text(raw.get("budget", ""), f"{at}: budget"), resamples=resamples,
        needs=tuple(_texts(raw["needs"], f"{at}: needs")) if "needs" in raw else (),
    )  # fmt: skip


def seeds_of(value: Any, at: str) -> tuple[int, ...]:
    """A number n (seeds 1 .. n), a list, or text of either ("3", "1,5").

    >>> seeds_of(3, "seeds"), seeds_of([4, 2], "seeds"), seeds_of("7,", "seeds")
    ((1, 2, 3), (4, 2), (7,))
    """
    if isinstance(value, str):
        try:
            numbers = [int(x) for x in value.split(",") if x.strip()]
        except ValueError:
            raise ConfigError(f"{at}: a number of seeds or a list like 1,2,5, got {value!r}") from None
        value = numbers if "," in value else (numbers or [0])[0]
    if isinstance(value, int) and not isinstance(value, bool):
        value = list(range(1, value + 1))
    wrong = not isinstance(value, list) or any(isinstance(x, bool) or not isinstance(x, int) or x < 0 for x in value)
    if wrong or not value:
        raise ConfigError(f"{at}: a number >= 1 or a list of whole numbers, got {value!r}")
    if len(set(value)) != len(value):
        raise ConfigError(f"{at}: a seed is there twice: {value}")
    return tuple(value)


def find_file(name: str, table: Path, at: str) -> Path:
    """A file named in a table: from the working folder, else from the table's."""
    path = next((p for p in (Path(name), table.parent / name) if p.is_file()), None)
    if path is None:
        raise ConfigError(f"{at}: no such file: {name} (looked here and in {table.parent})")
    return path


def _rows(raw: Any, path: Path) -> dict[str, RowSpec]:
    at = f"{path}: rows"
    if not isinstance(raw, Mapping) or not raw:
        raise ConfigError(f"{at}: expected a block of rows, name -> {{label, config, settings, decode_only_of}}")
    rows: dict[str, RowSpec] = {}
    for key, row in raw.items():
        name, here = str(key), f"{at}.{key}"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{here}: a row's name becomes a folder; use letters, digits, '_', '.', '-'")
        row = {} if row is None else row
        _known(row, ROW_KEYS, here)
        label = _text(row.get("label", name), f"{here}.label")
        twin = next((r.name for r in rows.values() if r.label == label), None)
        if twin is not None:
            raise ConfigError(f"{here}.label: {label!r} is also the label of row {twin!r}")
        rows[name] = RowSpec(
            name, label, _files(row.get("config", []), path, f"{here}.config"),
            _settings(row.get("settings"), f"{here}.settings"), _text(row.get("decode_only_of", ""), f"{here}.decode_only_of"),
        )  # fmt: skip
    for row in rows.values():
        parent, here = row.decode_only_of, f"{at}.{row.name}.decode_only_of"
        if parent and (parent not in rows or parent == row.name):
            raise ConfigError(f"{here}: no other row named {parent!r}.{suggest(parent, rows)} Rows: {', '.join(rows)}")
        if parent and rows[parent].decode_only_of:
            raise ConfigError(f"{here}: row {parent!r} trains nothing itself; name {rows[parent].decode_only_of!r}")
    return rows


def _known(raw: Any, keys: Sequence[str], at: str) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{at}: expected a block of keys, got {raw!r:.60}")
    for key in raw:
        if key not in keys:
            raise ConfigError(f"{at}: {key}: no such key.{suggest(str(key), keys)} Keys: {', '.join(keys)}")


def _text(value: Any, at: str) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ConfigError(f"{at}: expected text, got {value!r}")
    return " ".join(str(value).split())


def _texts(value: Any, at: str) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(x, str) and x for x in listed):
        raise ConfigError(f"{at}: expected a list of names, got {value!r}")
    return listed


def _files(value: Any, table: Path, at: str) -> tuple[Path, ...]:
    return tuple(find_file(name, table, at) for name in ([] if value == [] else _texts(value, at)))


def _metrics(value: Any, at: str) -> dict[str, str]:
    if isinstance(value, list):
        value = {key: key for key in value} if len(set(map(str, value))) == len(value) else value
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{at}: expected different metric keys, as a list or key -> printed name; got {value!r}")
    return {_text(key, at): _text(label, f"{at}.{key}") for key, label in value.items()}


def _settings(value: Any, at: str) -> tuple[str, ...]:
    """Blocks or dotted keys as the overrides of a command line."""
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{at}: expected section.key: value, got {value!r}")
    for key in value:
        nested = {f"{key}.{inner}" for inner in value[key]} if isinstance(value[key], Mapping) else set()
        taken = next((k for k in _RESERVED if k == key or k in nested), None)
        if taken:
            raise ConfigError(f"{at}: {taken}: is set for every cell by 'ttt ablate'; leave it out")
    return tuple(_override(str(key), inner) for key, inner in value.items())


def _override(key: str, value: Any) -> str:
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9)
    return f"{key}={text.removesuffix(chr(10)).removesuffix('...').strip()}"
