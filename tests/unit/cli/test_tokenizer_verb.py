"""`ttt tokenizer`: a backbone's tokenizer with the audio tokens, in a folder of its own."""

import json

import pytest

from tests.conftest import SENTENCES
from ttt.cli.main import main
from ttt.text.tokenizer import TextTokenizer


def plain_bpe(sentences):
    """A byte-level BPE that knows no audio."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    plain.train_from_iterator(sentences, trainer)
    return plain


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    plain_bpe(SENTENCES).save(str(folder / "tokenizer.json"))
    return folder


def test_adds_codes_and_leaves_text_alone(backbone, tmp_path):
    before = (backbone / "tokenizer.json").read_bytes()
    arguments = ["tokenizer", f"model.path={backbone}", f"data.tokenizer={tmp_path / 't'}", "data.num_codes=20"]
    assert main(arguments) == 0
    made = TextTokenizer.load(tmp_path / "t")
    assert made.vocab.code_stop - made.vocab.code_start == 20
    ids = made.encode("the lazy dog")
    assert made.decode(ids) == "the lazy dog" and max(ids) < made.vocab.audio_start
    assert (backbone / "tokenizer.json").read_bytes() == before
    assert json.loads((tmp_path / "t/vocab.json").read_text())["digest"] == made.vocab.digest
    stamp = (tmp_path / "t/tokenizer.json").stat().st_mtime_ns
    assert main(arguments) == 0 and (tmp_path / "t/tokenizer.json").stat().st_mtime_ns == stamp, "up to date"
    assert main([*arguments[:-1], "data.num_codes=30"]) == 2, "other settings ask for --overwrite"
    assert main([*arguments[:-1], "data.num_codes=30", "--overwrite"]) == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        (["model.path="], "model.path: missing; name the folder of the backbone"),
        (["model.path=/nowhere"], "/nowhere/tokenizer.json: "),
        (["data.num_codes=-1"], "data.num_codes: must be >= 0, got -1"),
        (["data.num_codes=0", "model.arch=valle"], "data.num_codes: 0 is for text alone; architecture 'valle' needs codes"),
        (["data.tokenizer={backbone}"], "data.tokenizer: is the backbone's own folder"),
    ],
)
def test_errors(backbone, tmp_path, changes, message, capsys):
    arguments = ["tokenizer", f"model.path={backbone}", f"data.tokenizer={tmp_path / 't'}"]
    assert main(arguments + [c.format(backbone=backbone) for c in changes]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("form, added", [("text_then_speech", 0), ("text_then_speech_tags", 4)])
def test_text_then_speech(backbone, tmp_path, form, added, capsys):
    arguments = ["tokenizer", f"model.path={backbone}", f"data.tokenizer={tmp_path / 't'}", "data.num_codes=20"]
    settings = [f"data.form={form}", "data.codes_of=cosyvoice_v1", "data.codes_hz=50"]
    assert main([*arguments, *settings]) == 0
    said = json.loads((tmp_path / "t/vocab.json").read_text())
    assert (said["form"], said["codec"], said["frame_rate"]) == (form, "cosyvoice_v1", 50.0)
    assert said["speech_offset"] == said["text_vocab"] + added and said["total"] == said["speech_offset"] + 20
    assert len(said["modality_tokens"]) == added
    assert main([*arguments, "data.form=interleaved"]) == 2, "another form asks for --overwrite"
    assert "made with other settings (setting codec, setting form" in capsys.readouterr().err


def test_form_on_a_tokenizer_that_has_another(backbone, tmp_path, capsys):
    assert main(["tokenizer", f"model.path={backbone}", f"data.tokenizer={tmp_path / 't'}", "data.num_codes=20"]) == 0
    again = ["tokenizer", f"model.path={tmp_path / 't'}", f"data.tokenizer={tmp_path / 'u'}", "data.num_codes=20"]
    assert main([*again, "data.form=text_then_speech_tags"]) == 2
    assert "has audio tokens of the form 'interleaved' already" in capsys.readouterr().err
    assert main([*again, "data.form=tagged"]) == 2
    assert "no 'tagged'. Choices: interleaved" in capsys.readouterr().err and not (tmp_path / "u").exists()
