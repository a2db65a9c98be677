"""Reference numbers from a folder: ``TTT_PARITY_DIR``, or ``parity`` under ``TTT_SHARED`` or ``../shared``, or ``data`` here.

``data`` holds a small part of the whole folder (see its README).  No number is written into these tests: they work on any
folder of the same format.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ttt.model.lm import SpeechTextLM
from ttt.text.tokenizer import TextTokenizer
from ttt.text.vocab import Vocabulary
from ttt.types import Kind, PackedBatch

ROOT = Path(__file__).resolve().parents[2]


def folder() -> Path:
    named = os.environ.get("TTT_PARITY_DIR")
    whole = Path(named) if named else Path(os.environ.get("TTT_SHARED", ROOT.parent / "shared")) / "parity"
    return whole if named or whole.is_dir() else Path(__file__).parent / "data"


def need(file: str) -> Path:
    """Path of one file of the folder; the test is skipped, with a reason, where the folder lacks it."""
    path = folder() / file
    if not path.is_file():
        pytest.skip(f"no {file} in {folder()} (set TTT_PARITY_DIR to the whole set of reference numbers)")
    return path


def with_codes(path: Path) -> TextTokenizer:
    """The tokenizer of the reference preprocessing; the small folder has it without the 16384 codes."""
    return TextTokenizer.extended(path, 16384)


def cases(file: str) -> list[dict]:
    """Cases of one JSON file; a single skipped marker when the folder is not there."""
    path = folder() / file
    if not path.is_file():
        return [
            pytest.param(
                None, marks=pytest.mark.skip(reason=f"no reference numbers at {folder()} (set TTT_PARITY_DIR)")
            )
        ]
    return [pytest.param(c, id=c.get("name", c.get("id"))) for c in json.loads(path.read_text())["cases"]]


def tensors(file: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(need(file))


class IdTokenizer:
    """Stands in for a tokenizer where only ids matter."""

    def __init__(self, vocab: Vocabulary) -> None:
        self.vocab = vocab

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="session")
def layout() -> dict:
    return json.loads(need("config.json").read_text())["layout"]


@pytest.fixture(scope="session")
def vocab(layout) -> Vocabulary:
    return Vocabulary(
        size=layout["vocab_size"], audio_start=layout["audio_token_id_start"], code_start=layout["audio_code_first"],
        num_codes=layout["audio_code_last"] - layout["audio_code_first"] + 1, mask_id=layout["mask_id"],
        soa_id=layout["begin_of_audio_id"], soa_last_id=layout["begin_of_quad_id"], user_end_id=layout["end_of_audio_id"],
        eoa_id=layout["end_of_audio_new_id"], eoa_last_id=layout["end_of_audio_span_last_id"],
        im_start_id=layout["im_start_id"], im_end_id=layout["im_end_id"], pad_id=layout["pad_id"],
    )  # fmt: skip


@pytest.fixture(scope="session")
def models(vocab):
    """File name -> model with those weights, built once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    loaded: dict[str, SpeechTextLM] = {}

    def get(file: str) -> SpeechTextLM:
        if file not in loaded:
            config = dict(json.loads((folder() / "config.json").read_text())["model"])
            config.pop("dtype")
            hf = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(config.pop("model_type"), **config), attn_implementation="sdpa"
            )
            hf.load_state_dict(tensors(file))
            loaded[file] = SpeechTextLM(hf, IdTokenizer(vocab)).eval()
        return loaded[file]

    return get


def rows(ids: torch.Tensor, vocab: Vocabulary, labels=None, attention_mask=None, prompt_lengths=None) -> PackedBatch:
    """Reference tensors as a batch: one document per row, padding hidden by the attention mask only."""
    ids = ids.long()
    b, t = ids.shape
    audio = vocab.is_audio(ids)
    position = torch.arange(t).expand(b, t)
    prompt = torch.zeros(b, dtype=torch.long) if prompt_lengths is None else prompt_lengths.long()
    return PackedBatch(
        ids=ids, kind=torch.where(audio, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8), run_id=torch.cumsum(~audio, 1),
        doc=torch.arange(b)[:, None].expand(b, t).clone(), position=position,
        target=torch.ones_like(audio) if labels is None else labels.long() != -100,
        noisable=position >= prompt[:, None],
        visible=torch.ones_like(audio) if attention_mask is None else attention_mask.bool(),
        n_docs=b, mask_id=vocab.mask_id,
    )  # fmt: skip
