"""LoRA and QLoRA (Hu et al. 2021; Dettmers et al. 2023): a frozen backbone with low-rank adapters and trained new rows.

Adapters come from peft.  The rows of added tokens have no useful start, so they are trained in full (`ttt.model.rows`);
peft's ``modules_to_save`` would train, and store, the whole tables.  A checkpoint holds ``adapter.safetensors`` (adapters
and new rows), ``adapter.json`` (which base, what shape), the extended ``config.json`` and the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttt.config.schema import LoraSection, ModelSection
from ttt.errors import CheckpointError, ConfigError, MissingExtraError, suggest
from ttt.io.json_input import read_json
from ttt.io.pretrained import refuse_nonfinite
from ttt.model.backbone import bitsandbytes, build_backbone, load_hf
from ttt.model.folder import own_tokens, refuse_changed
from ttt.model.lm import SpeechTextLM, stop_at_turn_end
from ttt.model.rows import join_tables, split_tables
from ttt.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

RECORD, WEIGHTS = "adapter.json", "adapter.safetensors"
ADAPTER = "default"  # peft's name for the one set of adapters
BLOCKS, BLOCK_BYTES = 64, 1 << 16


class AdaptedLM(SpeechTextLM):
    """`SpeechTextLM` whose backbone is frozen: saves and loads adapters and new rows only."""

    def __init__(self, hf: Any, tokenizer: TextTokenizer, lora: LoraSection, base: Path, first_new: int) -> None:
        super().__init__(hf, tokenizer)
        self.lora, self.base, self.first_new = lora, base, first_new
        self.base_digest = base_digest(base)
        _adapt(hf, lora, first_new)

    @classmethod
    def build(
        cls, section: ModelSection, tokenizer: TextTokenizer, seed: int, code_vectors: Any = None
    ) -> AdaptedLM:  # fmt: skip
        """Adapters around the folder ``section.path``.  Raises `ConfigError`, `MissingExtraError` before loading it."""
        check_lora(section)
        base = Path(section.path)
        hf = build_backbone(section, tokenizer.vocab, seed, code_vectors)
        rows: int = hf.get_input_embeddings().num_embeddings  # type: ignore[operator]
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # peft draws the adapters from the global generator
            return cls(hf, tokenizer, section.lora, base, min(own_tokens(base, rows), tokenizer.vocab.size))

    def state(self) -> dict[str, Tensor]:
        """What is trained, by name: adapters (``....lora_A.weight``) and rows (``model.embed_tokens.new.weight``)."""
        trained = ((name, p) for name, p in self.hf.named_parameters() if p.requires_grad)
        return {name.replace(f".{ADAPTER}.", "."): parameter.detach() for name, parameter in trained}

    def save(self, folder: str | Path) -> None:
        """Adapters, new rows, tokenizer; not the base."""
        from safetensors.torch import save_file

        folder = Path(folder)
        save_file({name: value.contiguous().cpu() for name, value in self.state().items()}, folder / WEIGHTS)
        record = {
            "format": 1, "base": str(self.base.resolve()), "base_digest": self.base_digest,
            "first_new": self.first_new, "rows": self.hf.get_input_embeddings().num_embeddings, **asdict(self.lora),
        }  # fmt: skip
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        self.hf.config.save_pretrained(folder)
        self.tokenizer.save(folder)

    def load_weights(self, folder: str | Path) -> None:
        """Read what `save` wrote, in place.  Raises `CheckpointError` for adapters of another shape or base."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        record = read_record(folder)
        if record["base_digest"] != self.base_digest:
            raise CheckpointError(
                f"{folder / RECORD}: the adapters belong to the weights {record['base']} had when they were trained, and "
                f"{self.base} holds others; name the right folder with model.path"
            )
        try:
            stored, have = load_file(folder / WEIGHTS), self.state()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / WEIGHTS}: not readable: {error}; copy the folder again") from error
        odd = sorted(set(stored) ^ set(have)) or [n for n in have if stored[n].shape != have[n].shape]
        if odd:
            raise CheckpointError(
                f"{folder / WEIGHTS}: adapters of another shape: {len(odd)} tensors differ, first {odd[0]!r}; "
                "use the settings model.lora they were trained with"
            )
        refuse_nonfinite(folder / WEIGHTS, stored.items())
        with torch.no_grad():
            for name, value in have.items():
                value.copy_(stored[name])

    def merged(self) -> SpeechTextLM:
        """A plain model with adapters and rows folded in; this one is used up."""
        join_tables(self.hf)
        _unload(self.hf)
        self.hf.requires_grad_(True)
        return SpeechTextLM(self.hf, self.tokenizer)


def is_adapter(folder: str | Path) -> bool:
    """Does this folder hold adapters rather than a whole model?"""
    return (Path(folder) / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """``adapter.json``.  Raises `CheckpointError`."""
    record = read_json(folder / RECORD, "name an adapter folder, or copy it again", error=CheckpointError)
    try:
        LoraSection(**{k: record[k] for k in asdict(LoraSection())})
        return {**record, "base": str(record["base"]), "first_new": int(record["first_new"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD}: not readable: {type(error).__name__}: {error}") from error


def load_merged(
    folder: str | Path, attention: str = "sdpa", dtype: torch.dtype = torch.float32, base: str | Path = ""
) -> SpeechTextLM:
    """The whole model of an adapter folder: base weights in ``dtype``, adapters merged.

    ``base`` replaces the recorded folder when the base has moved.  The base of a QLoRA run is taken unquantised: merging
    into four bits would round the adapters away.
    """
    folder = Path(folder)
    refuse_changed(folder)
    record = read_record(folder)
    where = Path(base or record["base"])
    if not where.is_dir():
        raise CheckpointError(
            f"{folder}: adapters of {where}, which is not there; bring it back, or make a whole model with "
            f"'ttt model merge {folder} OUT --base DIR'"
        )
    tokenizer = TextTokenizer.load(folder)
    hf = load_hf(where, attention, dtype)
    if record["rows"] > hf.get_input_embeddings().num_embeddings:
        hf.resize_token_embeddings(record["rows"], mean_resizing=False)
    lora = LoraSection(**{**{k: record[k] for k in asdict(LoraSection())}, "quantize": "none"})
    model = AdaptedLM(hf, tokenizer, lora, where, record["first_new"])
    model.load_weights(folder)
    whole = model.merged()
    hf.config.use_cache = False
    stop_at_turn_end(hf, tokenizer.vocab)
    return whole.eval()


def check_lora(section: ModelSection) -> None:
    """Refuse settings that cannot run, naming the key, before weights are read."""
    lora = section.lora
    if lora.rank < 1:
        raise ConfigError(f"model.lora.rank: must be >= 1 (0 turns it off), got {lora.rank}")
    if not lora.targets:
        raise ConfigError("model.lora.targets: empty; name linear layers, e.g. [q_proj, v_proj]")
    if not section.path:
        raise ConfigError(
            "model.lora: needs model.path: adapters are stored without their base, which must be a folder to come back to"
        )
    _peft()
    if lora.quantize != "none":
        bitsandbytes()


def base_digest(folder: Path) -> str:
    """Digest of a model folder's weight files: names, sizes, and `BLOCKS` blocks spread over each.

    Tells models apart in a moment, however large; it is no seal against someone who wants to deceive.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as data:
            for i in range(BLOCKS):
                data.seek(i * size // BLOCKS)
                digest.update(data.read(BLOCK_BYTES))
    return digest.hexdigest()


def _adapt(hf: Any, lora: LoraSection, first_new: int) -> None:
    """Freeze, split the tables, inject adapters; what is trained is float32."""
    peft = _peft()
    names = {n.rsplit(".", 1)[-1] for n, m in hf.named_modules() if isinstance(m, nn.Linear)}
    for target in lora.targets:
        if target not in names:
            raise ConfigError(
                f"model.lora.targets: {type(hf).__name__} has no linear layer {target!r}.{suggest(target, names)} "
                f"There are: {', '.join(sorted(names))}"
            )
    hf.requires_grad_(False)
    rows = hf.get_input_embeddings().num_embeddings
    tables = split_tables(hf, first_new) if first_new < rows else []
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets),
            bias="none",
        ),
        hf,
        ADAPTER,
    )
    for parameter in hf.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for table in tables:  # peft freezes everything it does not know
        table.new.weight.requires_grad_(True)
    trained = sum(p.numel() for p in hf.parameters() if p.requires_grad)
    total = sum(p.numel() for p in hf.parameters())
    log.info(
        "model.lora: rank %d on %s; %.2f of %.2f million weights are trained, %d new token rows among them",
        lora.rank, ", ".join(lora.targets), trained / 1e6, total / 1e6, rows - first_new if tables else 0,
    )  # fmt: skip


def _unload(hf: Any) -> None:
    """Fold every adapter into its layer and put the plain layer back."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(hf.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(hf.get_submodule(parent), last, module.get_base_layer())
    if hasattr(hf, "peft_config"):
        del hf.peft_config


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            f"model.lora: needs the package peft ({error}); pip install 'ttt-speech[lora]'"
        ) from error
    return peft
