"""ttt data convert | encode | check | pack from the command line, and training from what they made."""

import json
import logging

import numpy as np
import pytest

from tests.conftest import random_example, tiny_tokenizer
from ttt.audio.codecs.toy import Toy
from ttt.audio.wav import write
from ttt.cli.main import main
from ttt.data.read.examples import read_examples, write_examples
from ttt.data.sources.store import Store
from ttt.text.tokenizer import TextTokenizer
from ttt.types import AudioCodes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_tokenizer().save(folder / "tok")
    rng = np.random.default_rng(0)
    write_examples(folder / "train.jsonl", [random_example(rng, f"t{i}") for i in range(60)])
    write_examples(folder / "test.jsonl", [random_example(rng, f"x{i}") for i in range(5)])
    (folder / "mix.json").write_text(json.dumps([{"path": "train.jsonl", "sample_ratio": 0.5, "data_type": "IT"}]))
    return folder


def run(*words):
    return main([str(w) for w in words])


def one_line(capsys):
    err = capsys.readouterr().err.strip()
    assert "\n" not in err
    return err


def test_pack_twice_changes_nothing(world, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    call = ["data", "pack", world / "mix.json", "--out", tmp_path / "s", "--tokenizer", world / "tok"]
    assert run(*call) == 0 and "60 examples" in caplog.text
    stamp = (tmp_path / "s" / "store.json").stat().st_mtime_ns
    assert run(*call, "--jobs", "2") == 0 and "data pack: up to date" in caplog.text, (
        "the number of processes decides nothing"
    )
    assert (tmp_path / "s" / "store.json").stat().st_mtime_ns == stamp
    assert run(*call, "--prompt-rule", "official") == 2
    assert "setting prompt_rule" in one_line(capsys) and Store(tmp_path / "s").about["prompt_rule"] == "labels"
    assert run(*call, "--prompt-rule", "official", "--overwrite") == 0
    assert Store(tmp_path / "s").about["prompt_rule"] == "official"


def test_pack_stops_at_a_broken_record_and_leaves_nothing(world, tmp_path, caplog, capsys):
    lines = (world / "train.jsonl").read_text().splitlines()
    (tmp_path / "x.jsonl").write_text("\n".join([*lines[:4], "{", *lines[4:]]))
    call = ["data", "pack", tmp_path / "x.jsonl", "--out", tmp_path / "s", "--tokenizer", world / "tok"]
    assert run(*call) == 2
    assert "x.jsonl:5: not JSON" in one_line(capsys) and [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]
    assert run(*call, "--skip-bad") == 0 and "1 skipped: not JSON" in caplog.text and len(Store(tmp_path / "s")) == 60


def test_check_prints_counts_and_fails_on_errors(world, tmp_path, capsys):
    assert (
        run("data", "check", world / "train.jsonl", "--test", world / "test.jsonl", "--tokenizer", world / "tok") == 0
    )
    page = capsys.readouterr().out
    assert (
        "60 records, 60 usable" in page
        and "length (tokens): mean" in page
        and "#####" in page
        and page.endswith("no errors\n")
    )
    (tmp_path / "x.jsonl").write_text((world / "train.jsonl").read_text() + '{"text": "<|begin_of_audio|>"}\n')
    assert run("data", "check", tmp_path / "x.jsonl", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == 1 and report["files"][0]["errors"] == {"span without an end": 1}
    assert f"{tmp_path}/x.jsonl:61: " in report["files"][0]["shown"]["span without an end"][0]
    assert run("data", "check", tmp_path / "x.jsonl") == 1
    assert "ERROR 1 x span without an end" in capsys.readouterr().out


def test_check_fails_on_what_it_is_told_to(world, tmp_path, capsys):
    call = ["data", "check", world / "train.jsonl", "--test", world / "train.jsonl"]
    assert run(*call) == 0 and run(*call, "--fail-on", "overlap") == 1
    capsys.readouterr()
    assert run(*call, "--fail-on", "overlaps") == 2 and "'overlaps' is none of" in one_line(capsys)
    assert run("data", "check", tmp_path / "gone.jsonl") == 2 and "no such file" in one_line(capsys)


def test_convert_to_examples(tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    rows = [{"question": "q", "answer": "a b c", "answer_cosyvoice_speech_token": [1, 2, 3]}, {"question": "q"}]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    call = [
        "data",
        "convert",
        "--from",
        "slam_omni",
        tmp_path / "s.jsonl",
        tmp_path / "out.jsonl",
        "text_chunk=2",
        "text_unit=words",
        "audio_chunk=2",
    ]
    assert run(*call) == 2
    assert "s.jsonl:2: field 'answer' must be text" in one_line(capsys) and not (tmp_path / "out.jsonl").exists()
    assert (
        run(*call, "--skip-bad") == 0 and "2 rows, 1 written" in caplog.text and "1 skipped: no answer" in caplog.text
    )
    (example,) = read_examples(tmp_path / "out.jsonl")
    assert [s.text or s.codes[:, 0].tolist() for s in example.turns[2].spans] == ["a b", [1, 2], " c", [3]]
    assert run(*call, "--skip-bad") == 0 and "up to date" in caplog.text
    capsys.readouterr()
    assert run("data", "convert", "--from", "slam-omny", tmp_path / "s.jsonl", tmp_path / "o.jsonl") == 2
    assert "no data converter named 'slam-omny'. Did you mean 'slam_omni'" in one_line(capsys)
    assert run(*call[:-2], "text_chunks=2") == 2 and "no such key" in one_line(capsys)
    assert run("data", "convert", "--from", "alpaca", tmp_path / "s.jsonl", tmp_path / "folder") == 2
    assert "name a .jsonl file" in one_line(capsys)


def test_a_plugin_adds_a_format(tmp_path):
    (tmp_path / "lines.py").write_text(
        "from dataclasses import dataclass\n"
        "from ttt.data.convert.core import record\n"
        "from ttt.interfaces import Converter\n"
        "from ttt.registry.families import CONVERTER\n\n\n"
        "@CONVERTER.register('plain_lines')\n@dataclass(frozen=True)\nclass PlainLines(Converter):\n"
        '    """One document a line."""\n\n'
        "    def rows(self, path):\n        return ((f'{path}:{n}', s) for n, s in enumerate(path.open(), 1))\n\n"
        "    def convert(self, where, row):\n"
        "        return record(where.rpartition('/')[2], [('document', [{'text': row.strip()}])], 'document')\n\n"
        "    def sample(self, folder):\n        (folder / 'x.txt').write_text('one\\ntwo\\n')\n        return folder / 'x.txt'\n"
    )
    (tmp_path / "x.txt").write_text("once upon a time\nthere was\n")
    call = ["--from", "plain_lines", tmp_path / "x.txt", tmp_path / "x.jsonl", "--plugins", tmp_path / "lines.py"]
    assert run("data", "convert", *call) == 0
    assert [e.turns[0].spans[0].text for e in read_examples(tmp_path / "x.jsonl")] == ["once upon a time", "there was"]
    from ttt.registry.families import CONVERTER

    del CONVERTER._entries["plain_lines"]


def test_recordings_to_a_corpus_and_chats_to_codes(tmp_path, capsys):
    codec = Toy().load()
    sound = codec.decode([AudioCodes(np.array([[3], [1], [4]] * 4, np.int32), codec.frame_rate_hz, codec.codec_id)])[0]
    write(tmp_path / "in" / "ann" / "u.wav", sound)
    (tmp_path / "in" / "ann" / "u.txt").write_text("w3 w1 w4")
    assert (
        run(
            "data",
            "convert",
            "--from",
            "folder",
            tmp_path / "in",
            tmp_path / "corpus",
            "--split",
            "dev",
            "--tasks",
            "asr",
        )
        == 0
    )
    assert sorted(p.name for p in (tmp_path / "corpus").iterdir()) == [
        "dev.convert.done.json",
        "dev.items.jsonl",
        "dev.jsonl",
    ]
    messages = [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "w3"}]
    (tmp_path / "v.jsonl").write_text(json.dumps({"messages": messages, "audios": ["in/ann/u.wav"]}) + "\n")
    assert run("data", "convert", "--from", "vita_audio", tmp_path / "v.jsonl", tmp_path / "w.jsonl") == 0
    assert run("data", "encode", tmp_path / "w.jsonl", tmp_path / "c.jsonl", "codec=toy") == 0
    (example,) = read_examples(tmp_path / "c.jsonl")
    assert example.turns[1].spans[0].codes[:, 0].tolist() == [3, 1, 4] * 4
    assert run("data", "encode", tmp_path / "w.jsonl", tmp_path / "w.jsonl", "codec=toy") == 2
    assert "name another .jsonl file" in one_line(capsys)


def test_training_from_a_store_a_mix_and_a_file(world, tmp_path, capsys):
    """The same examples give the same losses, whichever way they come; `ttt show` reads a store too."""
    assert run("data", "pack", world / "train.jsonl", "--out", tmp_path / "s", "--tokenizer", world / "tok") == 0
    (tmp_path / "mix.json").write_text(json.dumps([{"path": str(world / "train.jsonl"), "sample_ratio": 1}]))
    losses = []
    for number, data in enumerate((world / "train.jsonl", tmp_path / "s", tmp_path / "mix.json")):
        settings = {
            "run.dir": tmp_path / f"run{number}", "data.train": data, "data.tokenizer": world / "tok", "data.row_tokens": 128,
            "data.batch_tokens": 256, "model.preset": "toy", "train.steps": 2, "train.log_every_steps": 1,
            "train.tensorboard": False, "run.device": "cpu", "data.max_drop_share": 0.5,
        }  # fmt: skip
        assert run("train", *(f"{k}={v}" for k, v in settings.items())) == 0
        log = [json.loads(line) for line in (tmp_path / f"run{number}" / "metrics.jsonl").read_text().splitlines()]
        losses.append([r["train/loss"] for r in log if "train/loss" in r])
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 2
    capsys.readouterr()
    assert run("show", f"data.train={tmp_path / 's'}", f"data.tokenizer={world / 'tok'}", "--uid", "t7") == 0
    assert capsys.readouterr().out.startswith("t7  task chat")


def test_a_cells_inputs_are_the_sources_of_a_mix_too(world):
    from ttt.config.load import load_config
    from ttt.lab.cells import inputs_of

    config = load_config([], [f"data.train={world / 'mix.json'}", f"data.tokenizer={world / 'tok'}"])
    found = inputs_of(config, {})
    assert found["data.train[train.jsonl]"]["path"].endswith("train.jsonl") and "data.train" in found


def test_convert_a_glob_of_files(tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    row = json.dumps({"question": "q", "answer": "a", "answer_cosyvoice_speech_token": [1, 2]}) + "\n"
    for n in range(3):
        (tmp_path / f"train-{n:05d}-of-00003.jsonl").write_text(row * 2)
    call = ["data", "convert", "--from", "slamomni", tmp_path / "train-*.jsonl", tmp_path / "out.jsonl"]
    assert run(*call, "--n-samples", 5) == 0 and "5 rows, 5 written" in caplog.text
    assert len(read_examples(tmp_path / "out.jsonl")) == 5
    assert run(*call, "--n-samples", 5) == 0 and "up to date" in caplog.text
    (tmp_path / "train-00000-of-00003.jsonl").write_text(row)
    assert run(*call, "--n-samples", 5) == 2 and "made with other settings (setting inputs" in one_line(capsys)
    assert run(*call[:4], tmp_path / "dev-*.jsonl", tmp_path / "o.jsonl") == 2 and "no file fits" in one_line(capsys)
    assert run("data", "convert", "--from", "kaldi", tmp_path / "train-*.jsonl", tmp_path / "corpus") == 2
    assert "wav.scp: missing" in one_line(capsys)


def test_split_stats_and_show(world, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    call = ["data", "split", world / "train.jsonl", "--train", tmp_path / "a.jsonl", "--eval", tmp_path / "b.jsonl"]
    assert run(*call) == 0 and "51 lines" in caplog.text and "9 lines" in caplog.text
    assert len(read_examples(tmp_path / "a.jsonl")) == 51 and len(read_examples(tmp_path / "b.jsonl")) == 9
    assert run(*call) == 0 and "up to date" in caplog.text
    capsys.readouterr()
    assert run(*call, "--seed", 1) == 2 and "made with other settings (setting seed)" in one_line(capsys)
    assert run(*call, "--eval-ratio", 0, "--overwrite") == 2 and "--eval-ratio" in one_line(capsys)

    picture = tmp_path / "deep/h.png"
    call = ["data", "stats", tmp_path / "a.jsonl", "--tokenizer", world / "tok", "--context", 1, 100_000]
    assert run(*call, "--png", picture) == 0
    page = capsys.readouterr().out
    assert "median" in page and "51 examples (100.00 %) are longer than 1 tokens" in page
    assert "no example is longer than 100000 tokens" in page and picture.read_bytes().startswith(b"\x89PNG")
    assert run(*call, "--json") == 0 and json.loads(capsys.readouterr().out)["tokens"]["n"] == 51
    assert run(*call, "--png", tmp_path / "h.svg") == 2 and "name a .png file" in one_line(capsys)
    assert run("data", "stats", tmp_path / "a.jsonl") == 2 and "--tokenizer: " in one_line(capsys)

    call = ["data", "show", tmp_path / "a.jsonl", "--tokenizer", world / "tok"]
    assert run(*call, "--limit", 2) == 0
    page = capsys.readouterr().out
    assert page.count(" learned") >= 2 and "border at" in page and "\x1b" not in page, "no colours in a pipe"
    uid = read_examples(tmp_path / "a.jsonl")[7].uid
    assert run(*call, "--uid", uid, "--color", "always") == 0
    page = capsys.readouterr().out
    assert page.startswith(uid) and "\x1b[32m" in page
    assert run(*call, "--uid", "gone") == 2 and "no example called 'gone'" in one_line(capsys)


def test_check_takes_the_frame_rate_from_vocab_json(world, tmp_path, capsys):
    TextTokenizer.load(world / "tok").made_by("toy", 40.0).save(tmp_path / "tok")
    call = ["data", "check", world / "train.jsonl", "--json"]
    rates = [
        (["--tokenizer", tmp_path / "tok"], 40.0),
        (["--tokenizer", world / "tok"], 12.5),
        (["--frame-rate", 5], 5.0),
    ]
    for options, rate in rates:
        assert run(*call, *options) == 0
        assert json.loads(capsys.readouterr().out)["settings"]["frame_rate_hz"] == rate
    assert run(*call, "--frame-rate", 0) == 2 and "--frame-rate > 0" in one_line(capsys)


def test_noise_on_a_vocabulary_without_a_mask_is_refused_before_the_run(world, tmp_path, capsys):
    from tests.conftest import SENTENCES
    from ttt.text.tokenizer import train_bpe

    train_bpe(SENTENCES, 300, 16, form="text_then_speech").save(tmp_path / "tok")
    call = [
        "train",
        f"run.dir={tmp_path / 'run'}",
        f"data.tokenizer={tmp_path / 'tok'}",
        f"data.train={world / 'train.jsonl'}",
    ]
    assert run(*call, "objective=ttt", "model.preset=toy", "train.steps=1") == 2
    assert "this vocabulary has no mask token" in one_line(capsys) and not (tmp_path / "run").exists()
    assert run(*call, "objective=ar", "data.form=text_then_speech_tags", "model.preset=toy", "train.steps=1") == 2
    assert (
        "has the form 'text_then_speech'; name another folder" in one_line(capsys) and not (tmp_path / "run").exists()
    )
