"""Nobody's files are lost: what verbs write, against every place that is not theirs to write."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = ("--config", "recipe.yaml")
OUT = "OUT"
# Verbs that write a folder or file the user names: (words, what is read, is it a folder?)
VERBS = {
    "model init": (["model", "init", "recipe.yaml", OUT], "data/tokenizer", True),
    "model export": (["model", "export", "model", OUT], "model", True),
    "model text": (["model", "text", "model", OUT], "model", True),
    "data pack": (["data", "pack", "data/train.jsonl", "--tokenizer", "data/tokenizer", "--out", OUT], "data/train.jsonl", True),
    "data convert": (["data", "convert", "--from", "sharegpt", "talks.jsonl", OUT], "talks.jsonl", False),
    "vocode": (["vocode", *COMMON, "--tokens", "codes.json", "--out", OUT], "codes.json", False),
}  # fmt: skip
FOREIGN = ("mine.txt", "checkpoints/step-1/model.bin", "config.yaml", "wav/train/a.wav")


@pytest.fixture(autouse=True)
def files_to_read(request):
    """A file to convert and a table of experiments."""
    if "world" in request.fixturenames:
        request.getfixturevalue("world")
        turns = [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "two"}]
        Path("talks.jsonl").write_text(json.dumps({"id": "t", "conversations": turns}) + "\n")
        grid = "title: T\nbase: [recipe.yaml]\nseeds: [1]\nbaseline: a\nmetrics: [asr/wer]\n"
        grid += "rows: {a: {label: A}, b: {label: B, settings: {train.lr: 1.0e-4}}}\n"
        Path("grid.yaml").write_text(grid)


def words_of(verb, out, *more):
    return [str(out) if word == OUT else word for word in VERBS[verb][0]] + list(more)


def somebodys(folder):
    for name in FOREIGN:
        (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_text(f"{name} of somebody")


@pytest.mark.parametrize("verb", VERBS)
def test_places_that_are_not_the_verbs_to_write(world, run, tree, verb):
    _, source, is_folder = VERBS[verb]
    somebodys("theirs")
    Path("theirs.jsonl").write_text("mine\n")
    os.symlink("theirs", "link")
    os.symlink(source, "link_to_source" + Path(source).suffix)
    places = [source, "link_to_source" + Path(source).suffix, f"./x/../{source}"]
    Path("x").mkdir()
    places += (
        ["theirs", "link", "theirs.jsonl", ".", f"{Path(source).parent}", "run", "run/checkpoints", "corpus"]
        if is_folder
        else []
    )
    places += ["run/checkpoints/step-00000004/model"] if verb.startswith("model") else []
    places += ["model/inside"] if source == "model" else []
    before = tree(".")
    for place in places:
        outcome = run(*words_of(verb, place, "--overwrite"))
        assert place in outcome.complaint() or Path(place).name in outcome.complaint()
        assert tree(".") == before, place


@pytest.mark.parametrize("verb", [v for v in VERBS if not VERBS[v][2]])
def test_a_file_of_somebody_is_replaced_by_its_name_and_overwrite_only(world, run, tree, verb):
    out = Path("theirs.jsonl" if "convert" in verb else "theirs.wav")
    out.write_text("mine\n")
    before = tree(".")
    assert "was not made by ttt" in run(*words_of(verb, out)).complaint() and tree(".") == before
    assert run(*words_of(verb, out, "--overwrite")).code == 0 and out.read_bytes() != b"mine\n"


@pytest.mark.parametrize("verb", VERBS)
def test_an_earlier_output_is_replaced_when_told_to(world, run, tree, verb):
    out = Path("new.jsonl" if "convert" in verb else "new.wav" if verb == "vocode" else "new")
    assert run(*words_of(verb, out)).code == 0
    made = tree(".")
    assert run(*words_of(verb, out, "--overwrite")).code == 0
    assert tree(".").keys() == made.keys(), "nothing is left beside it"
    if VERBS[verb][2]:
        (out / "notes.txt").write_text("mine")
        assert "not made by" in run(*words_of(verb, out, "--overwrite")).complaint() and (out / "notes.txt").is_file()


# Verbs that choose names below a folder: (words, a file that is in the way)
DERIVED = {
    "tokenize": (["tokenize", *COMMON, "data.dir=fresh"], "fresh/codes/train.jsonl"),
    "examples": (["examples", *COMMON], "data/train.jsonl"),
    "tokenizer": (["tokenizer", *COMMON, "data.tokenizer=fresh", "model.arch=valle", "model.preset="], "fresh/vocab.json"),
    "generate": (["generate", *COMMON, "eval.out=fresh"], "fresh/test.generations.jsonl"),
    "generate trace": (["generate", *COMMON, "eval.out=fresh"], "fresh/test.trace.jsonl"),
    "floor": (["floor", *COMMON, "eval.out=fresh"], "fresh/floor.json"),
    "likelihood": (["likelihood", *COMMON, "eval.out=fresh"], "fresh/likelihood.json"),
    "train config": (["train", *COMMON, "run.dir=fresh"], "fresh/config.yaml"),
    "train metrics": (["train", *COMMON, "run.dir=fresh"], "fresh/metrics.jsonl"),
    "train checkpoints": (["train", *COMMON, "run.dir=fresh"], "fresh/checkpoints/best/model.bin"),
    "ablate": (["ablate", "grid.yaml", "--out", "fresh"], "fresh/table.txt"),
    "report": (["report", *COMMON], "run/report.md"),
    "stream": (["stream", "run", "--out", "fresh", "--text", "one?"], "fresh/text.wav"),
    "stream folder": (["stream", "run", "--out", "fresh", "--text", "one?"], "fresh/text/001.wav"),
}  # fmt: skip


@pytest.mark.parametrize("verb", DERIVED)
def test_names_below_a_folder_that_somebody_uses(world, run, tree, verb):
    words, path = DERIVED[verb]
    shutil.rmtree("run/report", ignore_errors=True)
    for marker in Path("data").glob("*.done.json"):
        marker.unlink()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("mine")
    before = tree(".")
    for more in ([], ["--overwrite"]):
        if more and verb == "report":
            continue
        complaint = run(*words, *more).complaint()
        assert "not made by ttt" in complaint, complaint
        assert tree(".") == before


def test_overwrite_of_a_run_leaves_what_no_run_wrote(world, run):
    for name in ("run/notes.txt", "run/checkpoints/best/model.bin", "run/tensorboard/notes.txt", "run/crash-notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("mine")
    assert run("train", *COMMON, "--overwrite", "train.steps=1").code == 0
    for name in ("run/notes.txt", "run/checkpoints/best/model.bin", "run/tensorboard/notes.txt", "run/crash-notes.txt"):
        assert Path(name).read_text() == "mine"
    assert not Path("run/checkpoints/step-00000004").exists()


def test_a_run_never_removes_what_it_starts_from(world, run, tree):
    before = tree("run/checkpoints")
    init = f"train.init_from={world.checkpoint}"
    assert "would remove train.init_from" in run("train", *COMMON, "--overwrite", init).complaint()
    assert tree("run/checkpoints") == before


def test_the_converters_source_is_refused(world, run, tree):
    os.link("talks.jsonl", "hard.jsonl")
    before = tree(".")
    for more in ([], ["--overwrite"], ["--shard", "1", "--overwrite"]):
        for out in ("talks.jsonl", "hard.jsonl"):
            if "--shard" in more:
                continue
            assert (
                "is the source" in run("data", "convert", "--from", "sharegpt", "talks.jsonl", out, *more).complaint()
            )
    for train, held_out in (("data/train.jsonl", "b.jsonl"), ("a.jsonl", "data/train.jsonl")):
        words = ("data", "split", "data/train.jsonl", "--train", train, "--eval", held_out, "--overwrite")
        assert "source" in run(*words).complaint()
    assert tree(".") == before


UIDS = ["..", ".", "a/b", "a_b", "你好", "再见", "x" * 300, "a\x1b[2Jb", "a.", "Case", "case", "../../run/config"]


def test_stream_names_files_by_any_id(world, run, tree):
    record = json.loads(Path("data/test.jsonl").read_text().splitlines()[0])
    Path("odd.jsonl").write_text("".join(json.dumps({**record, "uid": uid}) + "\n" for uid in UIDS))
    before = tree(".")
    outcome = run("stream", "run", "--examples", "odd.jsonl", "--out", "sounds/deep", "--warmup", "0", "--report")
    assert outcome.code == 0, outcome.err
    index = json.loads(Path("sounds/deep/names.json").read_text())["names"]
    assert sorted(index.values()) == sorted(UIDS) and len({n.lower() for n in index}) == len(UIDS)
    after = tree(".")
    assert {k: v for k, v in after.items() if not k.startswith("sounds")} == before
    assert {Path(k).parts[2].removesuffix(".wav") for k in after if k.startswith("sounds/deep/")} <= {
        *index,
        "names.json",
        "stream.json",
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--text", ""], "--text: is empty"), (["--text", "  "], "--text: is empty"), (["--wav", ""], "--wav: is empty"),
     (["--system", "x"], "--system goes with --text or --wav")],
)  # fmt: skip
def test_empty_questions(world, run, more, message):
    assert message in run("stream", "run", *more).complaint()


def test_stream_takes_a_system_message(world, run):
    assert (
        run("stream", "run", "--text", "one?", "--system", "write what you hear", "--report", "--warmup", "0").code == 0
    )


def test_blanks_in_a_path_of_audio(world, run):
    shutil.copy("question.wav", "my question.wav")
    for line in (
        "/audio my question.wav",
        "/audio 'my question.wav' please",
        "/audio my question.wav please",
        "/audio my\\ question.wav",
    ):
        outcome = run("chat", "run", stdin=line + "\n")
        assert outcome.code == 0 and "my question.wav: " in outcome.out and "chat:" not in outcome.out, outcome.out


def test_four_processes_at_once(world):
    """Four of each write the same outputs; all end well, and nothing temporary stays."""
    code = "import sys; from ttt.cli.main import main; sys.exit(main(sys.argv[1:]))"
    calls = [
        ["tokenize", *COMMON, "data.dir=fresh"],
        ["data", "convert", "--from", "sharegpt", "talks.jsonl", "c.jsonl", "--overwrite"],
    ]
    for words in calls:
        started = [
            subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True) for _ in range(4)
        ]
        ends = [(process.communicate()[1], process.returncode) for process in started]
        assert all(code == 0 for _, code in ends), ends
    assert not list(Path().rglob(".*.tmp"))
    assert Path("fresh/codes/train.jsonl").is_file() and Path("c.jsonl").is_file()


def test_two_ablations_in_one_folder_are_refused(world, run):
    from ttt.train.run_folder import hold

    with hold(Path("out"), "--out"):
        assert "is running in this folder" in run("ablate", "grid.yaml", "--out", "out").complaint()
