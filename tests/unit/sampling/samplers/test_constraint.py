"""The constraint in decoding: no sampler, canvas or vocabulary lets a code stand outside the range of its place."""

import dataclasses
import time
from functools import lru_cache

import numpy as np
import pytest
import torch

from tests.conftest import SENTENCES, gen
from ttt.config.schema import ModelSection
from ttt.diffusion.constraints import FramePosition, Unconstrained
from ttt.errors import ConfigError
from ttt.masks.library import Full, Hybrid
from ttt.model.backbone import build_backbone
from ttt.model.lm import SpeechTextLM
from ttt.registry.families import CONSTRAINT, INITIALIZER, LENGTH, SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.samplers.request import SpanRequest
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.types import Prompt

BLOCKS = {"block_length": 6, "gen_length": 36}
FIELDS = {
    "blockwise": {**BLOCKS, "diffusion_steps": 12}, "threshold": {**BLOCKS, "threshold": 0.2}, "first_hitting": BLOCKS,
    "entropy_bound": {**BLOCKS, "gamma": 2.0},
    **{name: {"gen_length": 30, "num_iterations": 3} for name in ("fixed_length", "semi_ar_origin", "semi_ar_padding")},
    "ar": {"temperature": 1.0},
}  # fmt: skip
SPAN_SAMPLERS = [name for name in SAMPLER.names() if not SAMPLER.get(name).arch]
FILLERS = [name for name in SPAN_SAMPLERS if not SAMPLER.get(name).autoregressive]


@lru_cache(maxsize=4)
def world(codebooks: int, codes: int = 6, form: str = "interleaved", loud: float = 0.0, ends: float = 1.0, width: int = 16):
    """A random model of two layers whose frames have ``codebooks`` positions of ``codes`` codes and who likes speech.

    ``loud``, ``ends``: how much it likes codes and the ends of spans (logits).
    """
    if form == "llada":
        from ttt.text.tokenizer import extend

        backend = train_bpe(SENTENCES * 3, 300, 1).backend
        tokenizer = TextTokenizer(extend(backend, codes, codebooks, "llada_tts_audio"), num_codebooks=codebooks)
    else:
        tokenizer = TextTokenizer(train_bpe(SENTENCES * 3, 300, codebooks * codes).backend, num_codebooks=codebooks)
    shape = {"hidden_size": width, "intermediate_size": 3 * width // 2, "initializer_range": 0.4}
    section = ModelSection(preset="toy", overrides=shape, init=INITIALIZER.build("normal", "init"))
    v = tokenizer.vocab
    bias = {v.soa_id: 5.0, v.soa_last_id: 4.0, v.eoa_id: ends, v.eoa_last_id: ends}
    bias |= dict.fromkeys(codes_of(v), loud)

    class Eager(SpeechTextLM):
        def head(self, hidden, ids=None):
            logits = super().head(hidden)
            for token, b in bias.items():
                logits[..., token] += b
            return logits if ids is None else logits[..., ids]

    return Eager(build_backbone(section, v, seed=0), tokenizer).eval()


def decoder(model, sampler, constraint=None, mask=None, length="until_eoa", fields=None, **settings):
    built = SAMPLER.build({"name": sampler, **FIELDS.get(sampler, {}), **(fields or {})}, "sampler")
    defaults = {"max_tokens": 60, "length": LENGTH.build(length, "length"), "constraint": constraint or FramePosition()}
    return Decoder(model, mask or Hybrid(), built, DecodeSettings(**{**defaults, **settings}))


def prompts(model, n=3):
    v = model.tokenizer.vocab
    return [Prompt(f"p{i}", [v.im_start_id, *range(5, 6 + i % 4)]) for i in range(n)]


def check_places(vocab, ids, stray: bool = False) -> tuple[int, int]:
    """(codes, spans) of an answer; every code lies in the range of its place, every end between frames.

    ``stray``: a whole answer may hold codes that no token opened a span for; with the others they lie on one grid.
    """
    place, codes, spans = None, 0, 0
    for token in ids:
        if token in (vocab.soa_id, vocab.soa_last_id):
            place, spans = 0, spans + 1
        elif vocab.code_start <= token < vocab.code_stop:
            if place is None:
                assert stray, f"a code outside a span: {list(ids)}"
                codes += 1
                continue
            low = vocab.code_start + place % vocab.num_codebooks * vocab.num_codes
            assert low <= token < low + vocab.num_codes, (place, list(ids))
            place, codes = place + 1, codes + 1
        else:
            if token in (vocab.eoa_id, vocab.eoa_last_id) and place is not None:
                assert place % vocab.num_codebooks == 0, (place, list(ids))
            place = None
    at = [
        (n - (i - vocab.code_start) // vocab.num_codes) % vocab.num_codebooks
        for n, i in enumerate(ids)
        if i in codes_of(vocab)
    ]
    assert not stray or len(set(at)) <= 1, list(ids)
    return codes, spans


def codes_of(vocab) -> range:
    return range(vocab.code_start, vocab.code_stop)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("codebooks, form", [(7, "interleaved"), (4, "interleaved"), (7, "llada")])
@pytest.mark.parametrize("sampler", SPAN_SAMPLERS)
def test_no_span_leaves_its_ranges(sampler, codebooks, form, temperature):
    model = world(codebooks, form=form)
    fields = {"temperature": temperature}
    mask = Full() if form == "llada" else Hybrid()
    codes = 0
    for answer in decoder(model, sampler, mask=mask, fields=fields, temperature=temperature).generate(prompts(model)):
        codes += check_places(model.tokenizer.vocab, answer.ids)[0]
        for span in answer.spans:
            if span.kind == "audio":
                assert span.codes.shape[1] == codebooks
    assert codes >= 2 * codebooks, "nothing was spoken, so nothing was shown"


@pytest.mark.parametrize("sampler", FILLERS)
def test_no_whole_answer_leaves_its_ranges(sampler):
    model = world(4, loud=3.0)
    codes = 0
    for temperature in (0.0, 1.0):
        fields = {"temperature": temperature, "canvas": "answer"}
        for answer in decoder(model, sampler, mask=Full(), fields=fields).generate(prompts(model, 4)):
            codes += check_places(model.tokenizer.vocab, answer.ids, stray=True)[0]
    assert codes >= 8, "nothing was spoken, so nothing was shown"


@pytest.mark.parametrize("sampler", FILLERS)
def test_speech_canvas_is_one_span_and_no_text(sampler):
    model = world(7, form="llada")
    v = model.tokenizer.vocab
    for answer in decoder(model, sampler, mask=Full(), fields={"canvas": "speech"}).generate(prompts(model)):
        assert answer.ids[0] == v.soa_id and answer.ids[-1] == v.eoa_id and answer.stopped == "eos"
        assert all(v.code_start <= i < v.code_stop for i in answer.ids[1:-1]) and answer.calls["ar"] == 0
        check_places(v, answer.ids)
        assert [s.kind for s in answer.spans] == ["audio"] and answer.codes.shape[0] * 7 == len(answer.ids) - 2


def test_unconstrained_decoding_does_leave_them():
    """Else the tests above show nothing."""
    model = world(7)
    with pytest.raises(AssertionError):
        for answer in decoder(model, "blockwise", Unconstrained()).generate(prompts(model)):
            check_places(model.tokenizer.vocab, answer.ids)


@pytest.mark.parametrize("sampler", SPAN_SAMPLERS)
def test_one_book_is_as_without(sampler):
    model = world(1, 20)
    some = [decoder(model, sampler, rule).generate(prompts(model)) for rule in (FramePosition(), Unconstrained())]
    assert [a.ids for a in some[0]] == [a.ids for a in some[1]]


@pytest.mark.parametrize("sampler", FILLERS)
def test_exact_lengths_in_whole_frames(sampler):
    model = world(4)
    length = {"name": "fixed", "codes": 12, "limit": 15}
    for answer in decoder(model, sampler, length=length).generate(prompts(model)):
        check_places(model.tokenizer.vocab, answer.ids)
        sizes = [s.codes.size for s in answer.spans if s.kind == "audio" and s.style == "span"]
        assert (
            sizes[0] == 12 and sizes == sorted(sizes, reverse=True) and {*sizes} <= {0, 4, 8, 12}
        )  # max_tokens cuts the last
    with pytest.raises(
        ConfigError, match="exactly 26 codes would end inside a frame under constraint 'frame'; take 24"
    ):
        decoder(model, sampler, length={"name": "fixed", "codes": 26})


def test_what_does_not_fit_is_refused():
    model = world(4)
    with pytest.raises(ConfigError, match="eval.strict: false restricts nothing, constraint 'frame' does"):
        decoder(model, "blockwise", strict=False)
    with pytest.raises(ConfigError, match="gen_length: 3 codes end inside the first frame"):
        decoder(model, "fixed_length", fields={"gen_length": 3})
    long = Prompt("long one", [5] * model.hf.config.max_position_embeddings)
    with pytest.raises(ConfigError, match="prompt 'long one': .* leave no room for an answer"):
        decoder(model, "blockwise").generate([long])
    constraint = decoder(model, "blockwise")._allowed_ids.constraint
    allowed = torch.ones(1, 3, dtype=torch.bool)
    request = SpanRequest(None, 0, [()], allowed, [None], [3], [gen()], constraint=constraint)
    with pytest.raises(ConfigError, match="does not say where in the span its logits stand"):
        request.restricted(torch.tensor([0]), torch.zeros(1, 1, 3))


@pytest.mark.parametrize(
    "sampler, fields, message",
    [
        ("blockwise", {"block_length": 5, "gen_length": 32}, "gen_length 32 must be a multiple of block_length 5"),
        ("blockwise", {**BLOCKS, "diffusion_steps": 13}, "diffusion_steps 13 must be a multiple"),
        ("fixed_length", {"remasking_ratio": 1.5}, r"remasking_ratio: must be >= 0 and <= 1"),
    ],
)
def test_settings_that_cannot_work(sampler, fields, message):
    with pytest.raises(ConfigError, match=message):
        SAMPLER.build({"name": sampler, **fields}, "eval.sampler")


# 28 places are four of SNAC's frames.  Spans of at most eight frames: the work of a frame grows with what is before it.
LONGEST = 56
TEN_THOUSAND = {
    "ar": {}, "blockwise": {"block_length": 28, "diffusion_steps": 10}, "threshold": {"block_length": 28, "threshold": 0.3},
    "entropy_bound": {"block_length": 28, "gamma": 6.0}, "first_hitting": {"block_length": 28},
    "fixed_length": {"num_iterations": 5},
    "semi_ar_padding": {"initial_length": 28, "num_iterations": 3},
    "semi_ar_origin": {"initial_length": 28, "length_increment": 28, "num_iterations": 3},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sampler", SPAN_SAMPLERS)
def test_ten_thousand_frames(sampler, capsys):
    """10,000 frames of 7 positions (SNAC's shape) of 16 codes, drawn at temperature 1: none leaves its range.

    Half of them are one span from the start (``canvas: speech``), half are spans among text; ``ar`` has no such canvas.
    """
    started, told, frames = time.process_time(), [], 0
    canvases = ("span", "speech") if sampler in FILLERS else ("span",)
    for canvas in canvases:
        speech = canvas == "speech"
        model = world(7, 16, "llada" if speech else "interleaved", ends=-1.0, width=32)
        fields = {**TEN_THOUSAND[sampler], "temperature": 1.0}
        if sampler in FILLERS:
            fields |= {"canvas": canvas, "gen_length": LONGEST}
        length = {"name": "budget", "codes": LONGEST, "last_codes": LONGEST}
        found, spans, seed = 0, 0, 0
        while found < 10_000 // len(canvases):
            settings = {"max_tokens": LONGEST + 2 if speech else LONGEST + 14, "temperature": 1.0, "seed": seed}
            own = decoder(model, sampler, FramePosition(), Full() if speech else Hybrid(), length, fields, **settings)
            for answer in own.generate(prompts(model, 256)):
                codes, opened = check_places(model.tokenizer.vocab, answer.ids)
                found, spans = found + codes // 7, spans + opened
            seed += 1
        frames += found
        told.append(f"{canvas} {found} in {spans} spans")
    with capsys.disabled():
        seconds = time.process_time() - started
        print(f"\n{sampler}: {frames} frames ({', '.join(told)}), no code outside its range; {seconds:.0f} s of CPU")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_cost_beside_unconstrained(capsys):
    """Seconds a token of `blockwise` with and without the constraint, in turns."""
    model = world(7, 64, "llada")
    fields = {"canvas": "speech", "temperature": 1.0, "block_length": 28, "gen_length": 140, "diffusion_steps": 10}
    length = {"name": "budget", "codes": 140, "last_codes": 140}
    seconds = {"frame": [], "none": []}
    for seed in range(8):
        for name in ("frame", "none") if seed % 2 else ("none", "frame"):
            rule = CONSTRAINT.build(name, "c")
            own = decoder(model, "blockwise", rule, Full(), length, fields, max_tokens=142, seed=seed)
            started = time.process_time()
            answers = own.generate(prompts(model, 32))
            seconds[name].append((time.process_time() - started) / sum(len(a.ids) for a in answers))
    ratio = np.median([a / b for a, b in zip(seconds["frame"], seconds["none"], strict=True)])
    with capsys.disabled():
        print(f"\nblockwise: {len(seconds['none'])} rounds, s a token with / without {ratio:.3f}")
    assert ratio < 2


def test_a_copy_of_the_settings_keeps_the_rule():
    settings = DecodeSettings(constraint=FramePosition())
    assert dataclasses.replace(settings, seed=2).constraint == FramePosition()
