"""Metrics against hand-made counts, jiwer and sacrebleu; every registered metric against one contract."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
import sacrebleu

from ttt.eval.metrics import UNITS, is_right, metric_id
from ttt.eval.normalizers import Chars, Verbatim, Words
from ttt.registry.families import METRIC, NORMALIZER

REFERENCES = ["the sky is blue", "three plus two is five", "turn the light off in the hall", "no"]
SAID = ["the sky is green", "three plus is five five", "turn light off in hall please", "no"]


def scored(text: str = "the sky is blue", ref: str = "the sky is blue", **more: object) -> dict:
    base: dict = {"uid": "a", "task": "qa", "split": "test", "text": text, "text_ref": ref}
    base |= {"answer_key": "blue", "distractors": []}
    base |= {"judged_text": text, "speech_ref": ref, "audio_s": 2.0, "ref_audio_s": 2.5, "seconds": 0.5}
    base |= {"mel_distance_db": 9.0, "speaker_similarity": 0.9, "forced": {"": (3.0, 4.0)}}
    base |= {"codes": np.array([[3, 0], [5, 0], [3, 1], [3, 2]], dtype=np.int32)}
    base |= {"first_block_s": 0.1, "calls": {"ar": 10, "diffusion": 30}, "normalize": Words().normalize}
    return base | more


def value(name: str, items: list[dict]) -> float:
    metric = METRIC.build(name, "metric")
    rows = [s for item in items if (s := metric.item(item)) is not None]
    return metric.total(np.sum(rows, axis=0))


# ------------------------------------------------------------------ normalisers


def test_words_normaliser():
    normalize = Words().normalize
    assert normalize("  Don\u2019t  STOP,\tplease!\n") == "dont stop please"
    assert normalize("twenty-one / 3.5 + caf\u00e9") == "twenty one 3 5 caf\u00e9"
    assert normalize("\uff21\uff22 \u2014 \u00c4") == "ab \u00e4"  # wide letters (NFKC), dash
    assert normalize("?!") == ""


def test_other_normalisers():
    assert Verbatim().normalize(" The Sky. ") == "The Sky."
    assert Chars().normalize("Ab c.") == "a b c"
    assert NORMALIZER.names() == ["chars", "none", "words"]


# ------------------------------------------------------------------ error rates


def test_wer_by_hand():
    # sub blue->green; del two, ins five; del the, del the, ins please; none
    items = [scored(s, r) for s, r in zip(SAID, REFERENCES)]
    rows = [METRIC.build("wer", "m").item(item) for item in items]
    assert [row.sum() - row[3] for row in rows] == [1, 2, 3, 0]
    assert value("wer", items) == pytest.approx(6 / 17)


def test_error_rates_agree_with_jiwer():
    items = [scored(s, r) for s, r in zip(SAID, REFERENCES)]
    assert value("wer", items) == pytest.approx(jiwer.wer(REFERENCES, SAID))
    assert value("judged_wer", items) == pytest.approx(jiwer.wer(REFERENCES, SAID))
    assert value("cer", items) == pytest.approx(jiwer.cer(REFERENCES, SAID))
    assert value("judged_cer", items) == pytest.approx(jiwer.cer(REFERENCES, SAID))


def test_wer_is_micro_not_the_mean_of_items():
    assert value("wer", [scored("x", "a"), scored("a b c d", "a b c d")]) == pytest.approx(1 / 5)


def test_wer_of_silence_insertions_and_empty_references():
    assert value("judged_wer", [scored(judged_text="")]) == 1.0
    assert value("wer", [scored("a b c", "a")]) == 2.0  # may exceed 1
    assert METRIC.build("wer", "m").item(scored("a b", "?!")).tolist() == [0, 0, 2, 0]
    assert np.isnan(value("wer", [scored("a b", "")]))


# ------------------------------------------------------------------ right or wrong


@pytest.mark.parametrize(
    "said, right",
    [
        ("the sky is blue", True),
        ("blue", True),
        ("well it is blue", True),
        ("the sky is red", False),
        ("red blue", False),  # two answers
        ("it is blue not red", False),  # does not end with the key
        ("the blue", True),
        ("the sky is bluered", False),  # whole words
        ("blueblue", False),
        ("", False),
    ],
)
def test_accuracy_rule(said, right):
    assert is_right(said, "the sky is blue", "blue", ["blue", "red", "green"]) is right


def test_words_of_the_reference_are_no_rivals():
    rivals = ["zero", "three", "five", "three five", "two five three"]
    assert is_right("three plus zero is three", "three plus zero is three", "three", rivals)
    assert is_right("zero plus three is three", "three plus zero is three", "three", rivals)  # allowed words, key last
    assert not is_right("three plus zero is zero", "three plus zero is three", "three", rivals)
    assert not is_right("three plus zero is zero three", "three plus zero is three", "three", rivals)
    assert not is_right("two five three five", "three five", "three five", rivals)
    assert is_right("three five", "", "three five", rivals)  # without a reference the key itself is the reference


def test_accuracy_of_items():
    items = [
        scored("It is Blue.", distractors=["Red"]),
        scored("red or blue", distractors=["Red"]),
        scored("red or blue"),
        scored("", judged_text="blue"),
        scored("blue", answer_key=None),
    ]
    assert value("accuracy", items) == pytest.approx(2 / 4)  # the last does not apply
    assert value("spoken_accuracy", items) == pytest.approx(3 / 4)
    assert value("exact_match", [scored("The SKY is blue!"), scored("blue")]) == 0.5


# ------------------------------------------------------------------ overlap


def test_auto_bleu_by_hand():
    # so-it, it-is, is-so, so-it: two of four; nothing repeated; too short
    said = ["So it is, so it", "one two three", "one"]
    assert value("auto_bleu", [scored(text, None) for text in said]) == pytest.approx((0.5 + 0 + 0) / 3)
    assert METRIC.build({"name": "auto_bleu", "n": 1}, "m").item(scored(said[0], None)).tolist() == [0.8, 1.0]
    assert METRIC.build("auto_bleu", "m").item(scored("a", None, judged_text=None)) is None


def test_token_entropy_by_hand():
    # of the first codebook: 3, 5, 3, 3; silence; eight codes once each
    items = [scored(), scored(codes=np.zeros((0, 2), dtype=np.int32)), scored(codes=np.arange(8, dtype=np.int32)[:, None])]
    first = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert [METRIC.build("token_entropy", "m").item(i)[0] for i in items] == pytest.approx([first, 0.0, 3.0])
    assert value("token_entropy", items) == pytest.approx((first + 3) / 3)


def test_bleu_and_chrf_agree_with_sacrebleu():
    items = [scored(s, r) for s, r in zip(SAID, REFERENCES)]
    assert value("bleu", items) == pytest.approx(sacrebleu.corpus_bleu(SAID, [REFERENCES]).score, abs=1e-9)
    assert value("chrf", items) == pytest.approx(sacrebleu.corpus_chrf(SAID, [REFERENCES]).score, abs=1e-9)


@pytest.mark.parametrize(
    "said, ref", [("", "a b"), ("xyz", "a b c d e"), ("The cat, sat.", "the cat sat."), ("a", "a")]
)
def test_overlap_of_odd_texts_agrees_with_sacrebleu(said, ref):
    assert value("bleu", [scored(said, ref)]) == pytest.approx(sacrebleu.corpus_bleu([said], [[ref]]).score, abs=1e-9)
    assert value("chrf", [scored(said, ref)]) == pytest.approx(sacrebleu.corpus_chrf([said], [[ref]]).score, abs=1e-9)


# ------------------------------------------------------------------ cost


def test_cost_by_hand():
    items = [scored(), scored(audio_s=0.0, first_block_s=None, calls={"ar": 10}), scored(audio_s=None)]
    assert value("rtf", items) == pytest.approx((0.5 + 0.5) / 2.0)  # time spent on silence counts
    assert value("calls_per_second", items) == pytest.approx(50 / 2.0)
    assert value("first_block_latency", items[:2]) == pytest.approx(0.1)
    assert value("empty_rate", items) == pytest.approx(1 / 2)  # the third need not speak
    assert value("length_ratio", items) == pytest.approx(2.0 / 5.0)


# ------------------------------------------------------------------ contract


@pytest.mark.parametrize("name", METRIC.names())
def test_every_metric(name, language_model):
    metric = METRIC.build({"name": name, **({"path": str(language_model)} if name == "gen_ppl" else {})}, "metric")
    one = metric.item(scored())
    assert one.ndim == 1 and one.dtype == np.float64 and np.isfinite(one).all()
    other = metric.item(scored("something else", judged_text="something else"))
    assert isinstance(metric.total(one + other), float)
    assert metric.unit in UNITS
    # an item without anything is skipped or counted, but never an error
    absent = ("text_ref", "speech_ref", "answer_key", "judged_text", "audio_s", "ref_audio_s", "first_block_s", "mel_distance_db",
              "codes", "speaker_similarity", "forced")  # fmt: skip
    nothing = metric.item(scored(**dict.fromkeys(absent)))
    assert nothing is None
    assert metric_id(metric, "J", "N").startswith(name)


def test_metric_names_say_what_they_rest_on():
    assert metric_id(METRIC.build("judged_wer", "m"), "ctc-1a2b3c4d", "words") == "judged_wer[ctc-1a2b3c4d,words]"
    assert metric_id(METRIC.build("wer", "m"), "ctc-1a2b3c4d", "words") == "wer[words]"
    assert metric_id(METRIC.build("rtf", "m"), "ctc-1a2b3c4d", "words") == "rtf"
