"""Scoring with a tone codec and a judge that reads tones: values by hand, files, and every refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from ttt.errors import ConfigError, DataError
from ttt.eval.evaluate import evaluate
from ttt.eval.generations import Generated, read_generations
from ttt.eval.inputs import metrics_of
from ttt.eval.listen import Instruments
from ttt.eval.normalizers import Words
from ttt.eval.score import Bootstrap
from ttt.registry.families import TASK
from ttt.types import Example, Span, Turn


def run(fakes, examples, records, out, metrics=None, samples=0):
    instruments = Instruments(fakes.judge, fakes.codec, Words())
    return evaluate(
        records, examples, metrics or fakes.METRICS, instruments, out, samples=samples, intervals=Bootstrap(50)
    ).result


@pytest.fixture
def small(fakes):
    """Two splits, three tasks; (examples, records) with known errors."""
    e, a = fakes.example, fakes.answer
    examples = [
        e("asr-1", "asr", "one two three four"), e("asr-2", "asr", "five six"),
        e("tts-1", "tts", "one two three four"), e("tts-2", "tts", "five six"),
        e("qa-1", "qa", "two two four", key="four", kind="plus"),
        e("qa-2", "qa", "one two three", key="three", kind="sum"),
        e("u-tts-1", "tts", "one two", split="test_unseen_voice"),
    ]  # fmt: skip
    records = [
        a(examples[0], "one two three five", "one two three four"), a(examples[1], "five six", "five six"),
        a(examples[2], "", "one two four"), a(examples[3], "", "", first_block_s=None),
        a(examples[4], "two two four", "two two four"), a(examples[5], "one two four three", "one three"),
        a(examples[6], "", "one two"),
    ]  # fmt: skip
    return examples, records


def test_values_by_hand(fakes, small, tmp_path):
    result = run(fakes, *small, tmp_path)
    values = {k: v["value"] for k, v in result["metrics"].items()}
    assert values["asr/wer"] == pytest.approx(1 / 6)
    assert values["tts/judged_wer"] == pytest.approx((1 + 2) / 6)  # one word missing; a silent answer loses both words
    assert values["tts/empty_rate"] == 0.5
    assert values["tts/rtf"] == pytest.approx(0.2 / 0.3)
    assert values["tts/length_ratio"] == pytest.approx(3 / 6)
    assert values["qa/accuracy"] == 0.5  # 'four', the other question's key, stands beside 'three'
    assert values["qa/spoken_accuracy"] == 1.0
    assert values["unseen_voice/tts/judged_wer"] == 0.0
    assert result["metrics"]["asr/wer"]["n"] == 2 and result["metrics"]["unseen_voice/tts/judged_wer"]["n"] == 1
    assert result["metrics"]["tts/judged_wer"]["metric_id"] == "judged_wer[fake-1a2b,words]"
    assert result["metrics"]["tts/length_ratio"]["higher_is_better"] is None
    assert (result["judge"], result["codec"], result["normalizer"]) == ("fake-1a2b", "tones-1", "words")
    assert result["by_kind"]["qa/accuracy"] == {"plus": {"value": 1.0, "n": 1}, "sum": {"value": 0.0, "n": 1}}
    assert result["counts"]["tts"] == {
        "items": 2, "stopped": {"im_end": 2}, "no_text": 2, "no_speech": 1, "unasked_speech": 0,
    }  # fmt: skip


def test_order_of_records_does_not_matter_and_only_judged_tasks_are_heard(fakes, small, tmp_path):
    examples, records = small
    first = run(fakes, examples, records, tmp_path)
    assert fakes.judge.heard == 4  # two of qa, one spoken of tts, one unseen; asr asks for no judge
    assert run(fakes, examples, records[::-1], tmp_path)["metrics"] == first["metrics"]


def test_items_stand_beside_averages(fakes, small, tmp_path):
    result = run(fakes, *small, tmp_path)
    items = {i["uid"]: i for i in map(json.loads, (tmp_path / "items.jsonl").read_text().splitlines())}
    assert list(items) == [e.uid for e in small[0]]
    assert items["tts-1"]["judged_text"] == "one two four" and items["tts-1"]["scores"]["judged_wer"] == 0.25
    assert items["tts-2"]["judged_text"] == "" and items["asr-1"]["judged_text"] is None
    total = np.sum([items[uid]["statistics"]["judged_wer"] for uid in ("tts-1", "tts-2")], axis=0)
    assert result["metrics"]["tts/judged_wer"]["value"] == pytest.approx(total[:3].sum() / total[3])


def test_samples_are_written_for_ears_eyes_and_tensorboard(shared_fakes, fakes, small, tmp_path):
    examples, records = ([x for x in part if x.task == "tts"] for part in small)
    instruments = Instruments(fakes.judge, fakes.codec, Words())
    evaluation = evaluate(records, examples, fakes.METRICS, instruments, tmp_path, samples=1, intervals=Bootstrap(50))
    evaluation.log_to_tensorboard(tmp_path / "tb", 7)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "samples").rglob("*.*"))
    shown = ("test/tts/tts-1", "test_unseen_voice/tts/u-tts-1")
    assert found == ["samples/names.json", *(f"samples/{uid}.{end}" for uid in shown for end in ("png", "wav"))]
    samples, rate = soundfile.read(tmp_path / "samples/test/tts/tts-1.wav")
    assert rate == 16_000 and len(samples) == 3 * 1600
    items = {i["uid"]: i for i in map(json.loads, (tmp_path / "items.jsonl").read_text().splitlines())}
    assert items["tts-1"]["wav"] == "samples/test/tts/tts-1.wav" and "wav" not in items["tts-2"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert "eval/unseen_voice/tts/judged_wer" in board.Tags()["scalars"]
    assert "samples/tts/01" in board.Tags()["audio"] and "samples/tts/01" in board.Tags()["images"]
    assert board.Scalars("eval/tts/judged_wer")[0].step == 7


def test_text_only_answers_need_neither_codec_nor_judge(fakes, tmp_path):
    turns = (Turn("user", (Span("text", "?"),)), Turn("assistant", (Span("text", "four"),)))
    example = Example("t-1", turns, "text_qa", {"text_ref": "four", "speech_ref": "four", "answer_key": "four"})
    record = Generated("t-1", "text_qa", "", "four", np.zeros((0, 1), dtype=np.int32))
    wanted = {"text_qa": {"accuracy": "accuracy", "rtf": "rtf"}}
    result = evaluate([record], [example], wanted, Instruments(None, None, Words()), tmp_path).result
    assert result["metrics"]["text_qa/accuracy"]["value"] == 1.0
    assert result["metrics"]["text_qa/rtf"]["n"] == 0 and result["metrics"]["text_qa/rtf"]["value"] is None


@pytest.mark.parametrize(("codec", "judge"), [(False, False), (True, False), (True, True)])
def test_chats_are_scored_with_what_is_there(codec, judge, fakes, tmp_path, caplog):
    """Without a codec or a judge: the text, and one line that says what is left out."""
    caplog.set_level("INFO")
    chat = TASK.build("chat", "tasks")
    spoken = fakes.example("a", "chat", "one two")
    spoken = chat.with_reference(Example("a", spoken.turns, "chat", {"split": ""}))
    written = Example("b", (Turn("user", (Span("text", "?"),)), Turn("assistant", (Span("text", "four"),))), "chat")
    written = chat.with_reference(written)
    open_one = Example("c", (Turn("user", (Span("text", "?"),)),), "chat")
    records = [
        fakes.answer(spoken, "one two", "one three"), Generated("b", "chat", "", "it is four", np.zeros((0, 1), np.int32)),
        Generated("c", "chat", "", "so", np.zeros((0, 1), np.int32)),
    ]  # fmt: skip
    instruments = Instruments(fakes.judge if judge else None, fakes.codec if codec else None, Words())
    metrics = metrics_of({"chat": chat}, [spoken, written, open_one], instruments.codec, instruments.judge)
    result = evaluate(records, [spoken, written, open_one], metrics, instruments, tmp_path, intervals=Bootstrap(5)).result
    values = {key: entry["value"] for key, entry in result["metrics"].items()}
    assert (values["chat/exact_match"], values["chat/contained"], values["chat/wer"]) == (0.5, 1.0, pytest.approx(2 / 3))
    assert values.get("chat/judged_wer") == (0.5 if judge else None) and ("chat/judged_wer" in values) == judge
    assert values.get("chat/length_ratio") == (1.0 if codec else None) and values["chat/empty_rate"] == 0
    assert "1 of 3 examples of task 'chat' have no answer to compare with" in caplog.text
    missing = {(False, False): "no codec and no judge", (True, False): "no judge", (True, True): "only the text"}[codec, judge]
    assert (f"score: {missing}: of task 'chat', only the text is scored (not: judged_wer" in caplog.text) == (not judge)


def test_unasked_speech_is_counted_not_scored(fakes, tmp_path):
    turns = (Turn("user", (Span("text", "?"),)), Turn("assistant", (Span("text", "one"),)))
    example = Example("a", turns, "asr", {"text_ref": "one", "speech_ref": "one", "split": "test"})
    wanted = {"asr": {"judged_wer": "judged_wer"}}
    result = run(fakes, [example], [fakes.answer(example, "one", "two two")], tmp_path, metrics=wanted)
    assert result["counts"]["asr"]["unasked_speech"] == 1
    assert result["metrics"]["asr/judged_wer"]["n"] == 0


# ------------------------------------------------------------------ refusals


def test_missing_unknown_and_double_generations_name_file_and_line(fakes, small, tmp_path):
    examples, records = small
    with pytest.raises(DataError, match="gen.jsonl: no generation for 2 of 7 examples, first 'qa-2'"):
        run(fakes, examples, records[:5], tmp_path)
    with pytest.raises(DataError, match="gen.jsonl:asr-1: uid 'asr-1' is not among the 6 examples"):
        run(fakes, examples[1:], records, tmp_path)
    with pytest.raises(DataError, match="gen.jsonl:asr-1: uid 'asr-1' was already generated at gen.jsonl:asr-1"):
        run(fakes, examples, [*records, records[0]], tmp_path)
    with pytest.raises(DataError, match="example uid 'asr-1' occurs twice"):
        run(fakes, [*examples, examples[0]], records, tmp_path)
    with pytest.raises(DataError, match="uid 'asr-1' is task 'asr' here and 'tts' in the examples"):
        run(fakes, [fakes.example("asr-1", "tts", "one")], records[:1], tmp_path)
    with pytest.raises(DataError, match="no examples"):
        run(fakes, [], records, tmp_path)
    assert not (tmp_path / "items.jsonl").exists()


def test_what_scoring_needs_is_asked_for_by_name(fakes, small, tmp_path):
    examples, records = small
    metrics = fakes.METRICS
    with pytest.raises(ConfigError, match="judge: missing; metric 'spoken_accuracy' of task 'qa' needs one"):
        evaluate(records, examples, metrics, Instruments(None, fakes.codec, Words()), tmp_path)
    with pytest.raises(ConfigError, match="codec: missing; gen.jsonl:tts-1 holds speech"):
        evaluate(records, examples, metrics, Instruments(fakes.judge, None, Words()), tmp_path)
    with pytest.raises(ConfigError, match="examples are of task 'tts', known are asr"):
        run(fakes, examples, records, tmp_path, metrics={"asr": {"wer": "wer"}, "qa": {}})
    with pytest.raises(Exception, match="no metric named 'judged_wr'. Did you mean 'judged_wer'"):
        run(fakes, examples, records, tmp_path, metrics={**metrics, "tts": {"x": "judged_wr"}})


def test_codes_outside_the_codec_are_refused(fakes, tmp_path):
    example = fakes.example("a", "tts", "one")
    record = Generated("a", "tts", "test", "", np.array([[99]], dtype=np.int32), where="gen.jsonl:1")
    with pytest.raises(DataError, match=r"gen.jsonl:1: codes must be \[F, 1\] in 0 .. 7 for codec 'tones-1'"):
        run(fakes, [example], [record], tmp_path)


def test_generation_files(tmp_path):
    path = tmp_path / "gen.jsonl"
    good = {
        "uid": "a", "task": "tts", "split": "test", "text": "", "codes": [[1], [2]], "calls": {"ar": 1, "diffusion": 4},
        "seconds": 0.5, "first_block_s": None, "stopped": "im_end", "n_tokens": 9,
    }  # fmt: skip
    path.write_text("\n".join(json.dumps(r) for r in (good, good | {"uid": "b", "codes": []})) + "\n")
    a, b = read_generations(path)
    assert a.codes.shape == (2, 1) and a.calls == {"ar": 1, "diffusion": 4} and a.first_block_s is None
    assert b.codes.shape == (0, 1) and b.where == f"{path}:2"
    for change, message in [
        ({"uid": 3}, "'uid' must be str"),
        ({"codes": [[1], [2, 3]]}, "not a generation record"),
        ({"seconds": "fast"}, "not a generation record"),
    ]:
        path.write_text(json.dumps(good | change) + "\n")
        with pytest.raises(DataError, match=message) as error:
            read_generations(path)
        assert f"{path}:1" in str(error.value)
    path.write_text("{\n")
    with pytest.raises(DataError, match="gen.jsonl:1: not JSON"):
        read_generations(path)
