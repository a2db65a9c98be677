"""A new tokenizer with audio tokens, as a configuration asks for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.config.load import to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError
from ttt.registry import name_of
from ttt.registry.families import PATTERN
from ttt.text.forms import DEFAULT_FORM, form_named
from ttt.text.tokenizer import TextTokenizer, read_backend, train_bpe
from ttt.text.vocab import FLATTEN

if TYPE_CHECKING:
    from ttt.interfaces import Codec, CodePattern

_ROLES = "system user assistant"  # words of the template: tokens of their own in a tokenizer without a backbone


@dataclass(frozen=True)
class TokenizerPlan:
    """What a new tokenizer is made of.

    ``source``: the tokenizer.json to extend; None: train a BPE of ``bpe_size`` tokens on the words of the template.
    ``codec_id`` and ``frame_rate_hz``: the codec whose codes the audio tokens stand for ("" and 0: not known).  ``mask_id``:
    a token of the source's that serves as mask; None: one is added.
    """

    source: Path | None
    num_codes: int
    num_codebooks: int
    form: str
    bpe_size: int
    codec_id: str
    frame_rate_hz: float
    pattern: CodePattern = FLATTEN
    mask_id: int | None = None

    def for_codec(self, codec: Codec | None) -> TokenizerPlan:
        """The plan with the sizes of a loaded codec."""
        if codec is None:
            return self
        return dataclasses.replace(
            self, num_codes=codec.num_codes, num_codebooks=codec.num_codebooks, codec_id=codec.codec_id,
            frame_rate_hz=codec.code_rate_hz,
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What decides the result, besides the source."""
        settings: dict[str, Any] = {"num_codes": self.num_codes}
        if self.num_codebooks > 1:
            settings["num_codebooks"] = self.num_codebooks
        if self.form != DEFAULT_FORM:
            settings["form"] = self.form
        if self.pattern != FLATTEN:
            settings["pattern"] = to_plain(self.pattern)
        if self.mask_id is not None:
            settings["mask_id"] = self.mask_id
        if self.codec_id:
            settings |= {"codec": self.codec_id, "frame_rate_hz": self.frame_rate_hz}
        return settings

    def make(self) -> TextTokenizer:
        """The tokenizer."""
        if self.source is None:
            made = train_bpe([_ROLES] * 3, self.bpe_size, self.num_codes, self.num_codebooks, self.form, self.pattern)
        else:
            made = TextTokenizer.extended(
                self.source, self.num_codes, self.num_codebooks, self.form, self.mask_id, self.pattern
            )
        return made.made_by(self.codec_id, self.frame_rate_hz)


def plan_tokenizer(config: RunConfig) -> TokenizerPlan:
    """The plan of ``data.tokenizer``, with the code sizes of section ``data``.

    Raises `ConfigError` when the architecture needs a backbone and ``model.path`` names none, when ``data.tokenizer``
    is the backbone's own folder, or when an architecture for speech is to have no codes.
    """
    data, source = config.data, None
    pattern = PATTERN.build(data.pattern, "data.pattern")
    if config.model.path:
        source = Path(config.model.path) / "tokenizer.json"
        if Path(data.tokenizer).resolve() == Path(config.model.path).resolve():
            raise ConfigError("data.tokenizer: is the backbone's own folder; name another, so that it stays as it was")
    elif name_of(config.model.arch) == "causal_lm" and not config.model.preset:
        raise ConfigError("model.path: missing; name the folder of the backbone whose tokenizer is to be extended")
    if not data.num_codes and config.codec is None and name_of(config.model.arch) != "causal_lm":
        raise ConfigError(f"data.num_codes: 0 is for text alone; architecture {name_of(config.model.arch)!r} needs codes")
    mask_id = _mask_of(config, source) if data.mask_token else None
    return TokenizerPlan(
        source, data.num_codes, data.num_codebooks, data.form, data.bpe_size, data.codes_of, data.codes_hz, pattern, mask_id
    )


def _mask_of(config: RunConfig, source: Path | None) -> int:
    """The id of ``data.mask_token``.  Raises `ConfigError` where the form has a mask of its own, or the tokenizer no such token."""
    asked, form = config.data.mask_token, form_named(config.data.form, "data.form: ", config.data.num_codes)
    if source is None or form.fixed_mask:
        raise ConfigError(
            f"data.mask_token: form {form.name!r} has a mask of its own; leave it empty, or say data.num_codes=0 for text alone"
        )
    backend = read_backend(source)
    found = int(asked) if asked.isdecimal() else backend.token_to_id(asked)
    if found is None or backend.id_to_token(found) is None:
        raise ConfigError(f"data.mask_token: {asked!r} is no token of {source}; leave it empty to have one added")
    return found
