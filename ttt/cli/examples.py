"""Build training examples, and a text tokenizer, from a corpus and its codes.

Writes data.dir/SPLIT.jsonl from data.corpus/SPLIT.items.jsonl and the codes of 'ttt tokenize', and data.dir/tokenizer.  With
data.tokenizer=DIR, a folder that 'ttt tokenizer' made of a backbone's, it uses that one and makes none.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ttt.cli.common import add_common, configure, dry_run

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the tokenizer, unless there is one, and the examples of every split."""
    from ttt.audio.loading import load_part
    from ttt.config.load import to_plain
    from ttt.config.schema import MISSING
    from ttt.errors import ConfigError
    from ttt.registry.families import PATTERN
    from ttt.stage import Stage
    from ttt.tasks.prepare import corpus_tokenizer, prepare
    from ttt.text.forms import DEFAULT_FORM
    from ttt.text.tokenizer import TextTokenizer
    from ttt.text.vocab import FLATTEN

    config = configure(arguments, ("codec", "data.corpus", "data.dir"))
    data = config.data
    corpus, out = Path(data.corpus), Path(data.dir)
    own = out / "tokenizer"
    given = None if data.tokenizer == MISSING or Path(data.tokenizer).resolve() == own.resolve() else Path(data.tokenizer)
    pattern = PATTERN.build(data.pattern, "data.pattern")
    files = [out / f"{split}.jsonl" for split in data.splits]
    if dry_run(arguments, config, [f"build {file}" for file in files]):
        return 0
    codec = load_part(config, "codec")
    inputs = [out / "codes" / f"{split}.jsonl" for split in data.splits]
    inputs += [corpus / f"{split}.items.jsonl" for split in data.splits]
    settings = {"tasks": to_plain(config.tasks), "codec": codec.codec_id}
    if given is None:
        settings["bpe_size"] = data.bpe_size
        settings |= {"pattern": to_plain(pattern)} if pattern != FLATTEN else {}
        settings |= {"form": data.form} if data.form != DEFAULT_FORM else {}
    else:
        inputs.append(given / "tokenizer.json")
    outputs = files if given else [*files, own]
    stage = Stage("examples", out / "examples.done.json", inputs, outputs, settings, "run 'ttt tokenize' first")
    if stage.is_done(arguments.overwrite):
        return 0
    if given is None:
        tokenizer = corpus_tokenizer(corpus, codec, config.tasks, data.bpe_size, data.form, pattern)
    else:
        tokenizer = TextTokenizer.load(given).check_pattern(pattern)
        made_for = (tokenizer.vocab.codec, tokenizer.vocab.num_codes, tokenizer.vocab.num_codebooks)
        if made_for != (codec.codec_id, codec.num_codes, codec.num_codebooks):
            raise ConfigError(
                f"data.tokenizer: {given} is for codes of {made_for[0] or 'an unknown codec'} ({made_for[2]} x {made_for[1]}), the "
                f"recipe's codec is {codec.codec_id} ({codec.num_codebooks} x {codec.num_codes}): "
                "run 'ttt tokenizer' with this recipe"
            )
    report = prepare(corpus, data.splits, out, codec, config.tasks, tokenizer)
    if given is None:
        tokenizer.save(own)
    stage.finish(report)
    for split in data.splits:
        log.info("examples: %s: %s", split, ", ".join(f"{k} {v}" for k, v in report[split].items()))
    return 0
