"""Checks before the first network call: settings, constraints and prompts that cannot be decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ttt.errors import ConfigError, DataError
from ttt.interfaces import LengthRule, SpanSampler
from ttt.registry import name_of
from ttt.sampling.samplers.allowed import SpanConstraint
from ttt.text.special_tokens import ABSENT
from ttt.text.vocab import Vocabulary
from ttt.types import Prompt


def check_answer_settings(settings: Any, default: Any) -> None:
    """Raise `ConfigError` for settings of text mode: a sampler whose canvas is the answer has no text mode."""
    for name in ("temperature", "top_k", "top_p", "min_text_tokens_after_audio", "length"):
        if getattr(settings, name) != getattr(default, name):
            raise ConfigError(
                f"eval.{name}: has no meaning when eval.sampler.canvas is 'answer' (the sampler writes the text too); "
                f"leave it at {getattr(default, name)!r} and set the sampler's own fields"
            )


def check_constraint(constraint: SpanConstraint | None, vocab: Vocabulary, sampler: SpanSampler, length: LengthRule) -> None:
    """Raise `ConfigError` for lengths that no span can have, and canvases that vocabulary or constraint do not support."""
    if sampler.canvas == "speech" and vocab.soa_last_id == ABSENT:
        raise ConfigError("eval.sampler.canvas: speech needs a token that opens a span; this vocabulary has none")
    if constraint is None:
        return
    name = name_of(constraint.rule)
    if sampler.canvas == "answer" and not constraint.period:
        raise ConfigError(
            f"eval.constraint: {name!r} has no period, so it serves spans only; set eval.sampler.canvas=span"
        )
    most = getattr(sampler, "gen_length", 0)
    if most and not constraint.codes_within(most):
        raise ConfigError(f"eval.sampler.gen_length: {most} codes end inside the first frame under constraint {name!r}")
    for last in (False, True):
        exact = length.exact_codes(last)
        if exact is not None and constraint.codes_within(exact) != exact:
            raise ConfigError(
                f"eval.length: a span of exactly {exact} codes would end inside a frame under constraint {name!r}; take "
                f"{constraint.codes_within(exact)}, or another number after which a span may end"
            )


def check_together(vocab: Vocabulary, sampler: SpanSampler, strict: bool) -> None:
    """Raise `ConfigError` for what cannot write codes that stand together at a position of the network."""
    name, together = name_of(vocab.pattern), vocab.codes_together
    if not strict:
        raise ConfigError(f"eval.strict: pattern {name!r} writes {together} codes at a position, one of each column; set true")
    if sampler.canvas == "answer":
        raise ConfigError(
            f"eval.sampler.canvas: pattern {name!r} puts {together} codes at a position, so that masks stand for either text or "
            "speech; set span or speech"
        )
    for key in ("block_length", "initial_length", "length_increment"):
        if getattr(sampler, key, 0) % together:
            raise ConfigError(
                f"eval.sampler.{key}: {getattr(sampler, key)} ends inside a position of pattern {name!r}; take a multiple of "
                f"{together}"
            )


def check_prompts(model: Any, prompts: Sequence[Prompt], sampler: SpanSampler, max_tokens: int) -> None:
    """Raise `ConfigError` for a prompt that leaves no room in the positions that the model was made for, and for one with
    known parts of its answer when the sampler does not keep them.
    """
    if any(len(p.known) for p in prompts) and not sampler.fills_holes:
        raise ConfigError(
            "eval.sampler: holes are filled by valle_masked with first_codebook=masked, which a network with "
            "model.arch.nar=masked_all takes, and in text by samplers of whole answers (canvas: answer, without official); this "
            "sampler writes what follows the prompt"
        )
    size = getattr(getattr(model, "arch", None), "voice_dim", 0)
    if getattr(sampler, "voice_scale", 0) and not size:
        raise ConfigError("eval.sampler.voice_scale: this model reads no voice vectors (model.arch.voice_dim=0); set it to 0")
    for prompt in prompts if size else ():
        found = 0 if prompt.voice is None else len(prompt.voice)
        if found != size:
            raise DataError(
                f"prompt {prompt.uid!r}: {f'its voice_vector has {found} numbers' if found else 'has no voice_vector'}, and "
                f"model.arch.voice_dim={size} reads {size}; add a list of {size} numbers to its meta"
            )
    config = getattr(getattr(model, "hf", None), "config", None)
    most = getattr(config, "max_position_embeddings", None)
    for prompt in prompts:
        if len(prompt.known) > max_tokens:
            raise ConfigError(
                f"prompt {prompt.uid!r}: its answer has {len(prompt.known)} tokens, holes included; eval.max_tokens is "
                f"{max_tokens}, raise it"
            )
        if most and len(prompt.ids) >= most:
            raise ConfigError(
                f"prompt {prompt.uid!r}: {len(prompt.ids)} tokens leave no room for an answer in the model's {most} positions; "
                "shorten it"
            )
