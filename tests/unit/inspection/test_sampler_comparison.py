import json

import pytest

from tests.conftest import audio, text, tiny_model
from tests.tiny_runs import SPAN, SYSTEMS, make_run
from ttt.cli.main import main
from ttt.config.load import load_config
from ttt.data.encode import encode_example
from ttt.data.read.examples import read_examples
from ttt.errors import ConfigError
from ttt.inspection.contenders import one_line, read_contenders
from ttt.inspection.sampler_report import answers_side_by_side, written
from ttt.inspection.samplers import Answered, decode, distinct, score_likelihood, self_bleu, summarise, text_table
from ttt.likelihood import Draws, likelihoods
from ttt.registry.families import MASK, SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.types import Example, Generation, Prompt, Turn


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", "ttt")


def w(*lines):
    return [line.split() for line in lines]


def test_distinct():
    assert distinct([w("a b c"), w("a b c")], 1) == 1.0  # two prompts with one answer each
    assert distinct([w("a b c", "a b c")], 1) == 0.5
    assert distinct([w("a a a a")], 2) == pytest.approx(1 / 3)
    assert distinct([w("a"), w("")], 2) is None


def test_self_bleu():
    assert self_bleu([w("a b c d e", "a b c d e", "a b c d e")]) == pytest.approx(100)
    assert self_bleu([w("a b c d e", "f g h i j")]) < 15
    some = self_bleu([w("a b c d e", "a b c d x")])
    assert 15 < some < 100
    assert self_bleu([w("a b c"), w("a b c", "")]) is None


def prompts_of(run, model):
    made = {}
    for e in read_examples(run / "examples.jsonl"):
        asked = Example(e.uid, e.turns[:-1], e.task)
        stream = encode_example(asked, model.tokenizer, open_answer=True)
        made[e.uid] = (asked, Prompt.of(stream, e.uid))
    return made


def hot(model):
    sampler = SAMPLER.build({**SPAN, "temperature": 1.0}, "sampler")
    return Decoder(model, MASK.build("hybrid", "mask"), sampler, DecodeSettings(max_tokens=10, temperature=1.0))


def test_draws_differ_and_do_not_depend_on_the_batch(run):
    model = tiny_model()
    asked = [p for _, p in prompts_of(run, model).values()]
    answers = decode(hot(model), asked, 3, 4)
    assert [(a.uid, a.draw) for a in answers] == [(p.uid, d) for p in asked for d in range(3)]
    assert [a.made.ids for a in decode(hot(model), asked, 3, 1)] == [a.made.ids for a in answers]
    plain = hot(model).generate(asked)
    assert [a.made.ids for a in answers if a.draw == 0] == [g.ids for g in plain]
    assert len({a.made.ids for a in answers if a.uid == "a"}) > 1


def test_likelihoods_are_those_of_the_answers(run):
    model = tiny_model()
    made = prompts_of(run, model)
    config = load_config([run / "config.yaml"])
    answers = decode(hot(model), [p for _, p in made.values()], 1, 4)
    scored = score_likelihood(answers, {u: e for u, (e, _) in made.items()}, model, config.objective, Draws(4), 1, 2048)
    for a in scored:
        said = Example(f"{a.uid}#0", (*made[a.uid][0].turns, Turn("assistant", a.made.spans)), made[a.uid][0].task)
        (wanted,) = likelihoods(model, config.objective, [said], Draws(4), seed=1, budget=2048)
        assert a.nats.keys() == wanted.by.keys()
        assert all(a.nats[k][0] == pytest.approx(wanted.by[k].nats, rel=1e-4) for k in a.nats)
        assert a.nats["text"][2] and a.nats["text"][0] > 0


def test_summary_by_hand():
    def made(uid, words, codes, calls, seconds, stopped):
        spans = (text(words), audio(codes, "last")) if codes else (text(words),)
        return Generation(
            uid, tuple(range(10)), spans, {"ar": calls, "diffusion": 2}, seconds, 0.5 if codes else None, stopped
        )

    answers = [
        Answered("x", 0, made("x", "one two", [1, 2, 3, 4], 4, 1.0, "im_end"), {"text": (6.0, 3, True)}),
        Answered("x", 1, made("x#1", "one two", [1, 2, 3, 9], 6, 3.0, "length"), {"text": (12.0, 3, True)}),
    ]
    s = summarise(answers, 50.0, 20, 1)
    assert (s["words"], s["codes"], s["calls_ar"], s["calls_diffusion"], s["seconds"], s["cut"]) == (2, 4, 5, 2, 2, 0.5)
    assert s["calls_per_token"] == 14 / 20 and s["rtf"] == 4 / (8 / 50) and s["first_block_s"] == 0.5
    assert (
        s["distinct_1"] == 0.5
        and s["codes_distinct_2"] == pytest.approx(4 / 6)
        and s["self_bleu"] == pytest.approx(100)
    )
    assert s["likelihood"]["text"]["value"] == 3.0 and s["likelihood"]["audio"] is None
    shown = text_table({"mine": s, "other": {**s, "rtf": None}}, width=60)
    assert max(map(len, shown.splitlines())) <= 62 and shown.count("mine") == shown.count("other") >= 2


def test_contenders(run, tmp_path):
    config = load_config([run / "config.yaml"])
    (tmp_path / "some.yaml").write_text(
        "slow: {sampler: {diffusion_steps: 16}}\nwarm: {temperature: 0.5, sampler: threshold}\n"
    )
    found = read_contenders(
        config, [str(tmp_path / "some.yaml"), "[own, threshold, {name: threshold, threshold: 0.5}]"]
    )
    assert list(found) == ["slow", "warm", "own", "threshold", "threshold 2"]
    assert found["slow"].eval.sampler.diffusion_steps == 16 and found["slow"].eval.sampler.block_length == 4
    assert found["own"].eval == config.eval and found["threshold 2"].eval.sampler.threshold == 0.5
    assert one_line(found["warm"]).startswith("threshold: defaults; text at temperature 0.5")
    assert one_line(found["threshold 2"]) == "threshold: threshold 0.5"


@pytest.mark.parametrize(
    "spec, says",
    [
        ("thresold", "no sampler named 'thresold'. Did you mean 'threshold'?"),
        ("{a: {temprature: 1}}", "'a': eval.temprature: no such key"),
        ("{name: threshold, threshold: 2}", r"threshold must lie in \[0, 1\]"),
        ("[own, 3]", "expected a sampler"),
        ("{a: own", "not YAML"),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_bad_contenders(run, spec, says):
    with pytest.raises((ConfigError, Exception), match=says) as found:
        read_contenders(load_config([run / "config.yaml"]), [spec])
    assert "--samplers" in str(found.value) and "\n" not in str(found.value)


def test_side_by_side(run):
    examples = read_examples(run / "examples.jsonl")
    a = Answered("a", 0, Generation("a", (1,), (text("one"), audio(range(12), "last")), {}, 0.1, stopped="length"))
    shown = answers_side_by_side({"own": [a, a], "other": [a]}, examples[:1])
    assert shown.splitlines() == [
        "a (tts)", "  wanted  [3 codes: 1 2 3]", "  own     one [12 codes: 0 1 2 3 4 5 6 7 ...] [cut]   (x2)",
        "  other   one [12 codes: 0 1 2 3 4 5 6 7 ...] [cut]",
    ]  # fmt: skip
    assert written(()) == "(nothing)"


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_the_verb(system, tmp_path, capsys):
    run = make_run(tmp_path / "run", system)
    argv = ["inspect", "samplers", str(run), "--examples", str(run / "examples.jsonl"), "--samplers", "own"]
    assert (
        main([*argv, "--samplers", "{hot: {sampler: {temperature: 1.0}}}", "--draws", "2", "--side-by-side", "1"]) == 0
    )
    out = run / "inspect" / "samplers"
    report = json.loads((out / "samplers.json").read_text())
    assert list(report["samplers"]) == ["own", "hot"] and report["uids"] == ["a", "b", "c"]
    assert report["samplers"]["own"]["answers"] == 6 and report["settings"]["hot"]["sampler"]["temperature"] == 1.0
    assert report["samplers"]["own"]["likelihood"]["text"]["bound"] == (system == "nar")
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [(x["sampler"], x["uid"], x["draw"]) for x in lines][:3] == [
        ("own", "a", 0),
        ("own", "a", 1),
        ("own", "b", 0),
    ]
    # greedy: two draws say the same
    assert [x["codes"] for x in lines[:6:2]] == [x["codes"] for x in lines[1:6:2]]
    shown = capsys.readouterr().out
    markdown = (out / "samplers.md").read_text()
    assert "a (tts)" in shown and "a (tts)" in markdown and "| own |" in markdown and "nats/token text" in shown
    assert main([*argv, "--draws", "0"]) == 2 and "--draws: must be >= 1" in capsys.readouterr().err
    assert main([*argv, "--uid", "zz"]) == 2 and "no example with uid 'zz'" in capsys.readouterr().err
    assert main([*argv, "--uid", "b", "--draws", "1", "--likelihood-draws", "0"]) == 0
    assert json.loads((out / "samplers.json").read_text())["samplers"]["own"]["likelihood"] == {
        "text": None,
        "audio": None,
    }
