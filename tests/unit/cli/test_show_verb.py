from ttt.cli.main import main


def test_show(tmp_path, tokenizer, capsys):
    from tests.conftest import audio, chat, text
    from ttt.data.read.examples import write_examples

    tokenizer.save(tmp_path / "tokenizer")
    write_examples(
        tmp_path / "x.jsonl",
        [chat("a", [text("hi")], [text("yes"), audio([1, 2], "last")]), chat("b", [text("hi")], [text("no")])],
    )
    argv = ["show", f"data.train={tmp_path / 'x.jsonl'}", f"data.tokenizer={tmp_path / 'tokenizer'}"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("a  task chat")
        and "2 codes in 1 spans" in out
        and "'<|end_of_audio_span_last|>'" in out
        and "###" in out
    )
    assert main([*argv, "--uid", "b"]) == 0 and capsys.readouterr().out.startswith("b ")
    assert main([*argv, "--uid", "c"]) == 2 and "no example with uid 'c'" in capsys.readouterr().err
