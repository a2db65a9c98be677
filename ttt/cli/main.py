"""The argument surface: ``ttt VERB --config recipe.yaml section.key=value``.  Imports nothing heavy."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys

import ttt
from ttt.cli import eval_options, model_options, options
from ttt.errors import TttError

VERBS = {
    "codec": ("ttt.cli.data:codec", "fit the configured codec on a corpus and save it"),
    "judge": ("ttt.cli.data:judge", "fit the configured judge on a corpus and save it"),
    "speaker": ("ttt.cli.data:speaker", "fit the configured speaker encoder on a corpus and save it"),
    "tokenize": ("ttt.cli.data:tokenize", "wavs of a corpus -> codes"),
    "tokenizer": ("ttt.cli.data:tokenizer", "a backbone's tokenizer + audio tokens -> data.tokenizer"),
    "examples": ("ttt.cli.data:examples", "corpus items + codes -> tokenizer and training examples"),
    "data": ("ttt.cli.dataset:data", "convert | encode | check | pack: foreign formats in, broken records out, data at size"),
    "floor": ("ttt.cli.data:floor", "the judge's error on original and on codec-resynthesized speech"),
    "train": ("ttt.cli.run:train", "train the configured objective"),
    "generate": ("ttt.cli.run:generate", "answer the prompts of example files"),
    "replay": ("ttt.cli.replay:replay", "how an answer was decoded, call by call: in the terminal, as a picture"),
    "stream": ("ttt.cli.stream:stream", "ask a model and hear it while it answers; wavs piece by piece, latency percentiles"),
    "score": ("ttt.cli.run:score", "generations -> metrics with intervals, result cards, sample wavs"),
    "likelihood": ("ttt.cli.likelihood:likelihood", "-log p of the answers of example files: text exact, audio bounded"),
    "eval": ("ttt.cli.benchmarks:evaluate", "text benchmarks: lm-eval | mmlu-redux | guard (what training cost the text)"),
    "report": ("ttt.cli.run:report", "one Markdown + JSON + PNG report of a run; prints the table"),
    "ablate": ("ttt.cli.ablate:ablate", "a table of experiments: every row under every seed, intervals, tests, plots"),
    "repro": ("ttt.cli.ablate:repro", "run a result card's experiment again and compare"),
    "doctor": ("ttt.cli.doctor:doctor", "is a run healthy? checks its log, its batches and its checkpoint; names likely faults"),
    "vocode": ("ttt.cli.vocode:vocode", "speech tokens in a JSON file -> a wav, by the configured codec"),
    "continue": ("ttt.cli.continuation:continue_", "sound files -> what a model plays or says after them, or in a hole"),
    "chat": ("ttt.cli.chat:chat", "talk to a trained model: history, streaming text and speech, settings at the prompt"),
    "new": ("ttt.cli.new:new", "write something to start from: a recipe folder | a plug-in file"),
    "inspect": ("ttt.cli.inspect:inspect", "look into a trained model: attention | samplers"),
    "model": ("ttt.cli.model:model", "model folders: init | import | export | merge (adapters) | text (its text part) | show"),
    "estimate": ("ttt.cli.estimate:estimate", "what a recipe costs: parameters, memory by ZeRO stage, speed, hours, price"),
    "bench": ("ttt.cli.bench:bench", "how fast: train | decode | valle | loader | size; prints a table, writes JSON"),
    "list": ("ttt.cli.inspect:list_plugins", "plug-in families, or the plug-ins of one"),
    "check": ("ttt.cli.check:check", "does a plug-in keep its family's promises? names the broken ones, with counter-examples"),
    "show": ("ttt.cli.inspect:show", "one example with its tokens, labels and mask drawn in the terminal"),
    "config": ("ttt.cli.inspect:config", "print the resolved configuration"),
}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar; one sub-command per verb."""
    top = argparse.ArgumentParser(
        prog="ttt", description="Speech-text language models: AR text, NAR audio, one Transformer."
    )
    top.add_argument("--version", action="version", version=f"ttt {ttt.__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (_, help_line) in VERBS.items():
        verb = verbs.add_parser(name, help=help_line, description=help_line)
        if name in ("ablate", "bench", "chat", "continue", "doctor", "inspect", "new", "replay", "repro", "stream"):
            getattr(options, f"{name}_" if name == "continue" else name)(verb)
        elif name in ("model", "estimate"):
            getattr(model_options, name)(verb)
        elif name == "data":
            options.data(verb)
        elif name == "list":
            verb.add_argument("family", nargs="?", default="", help="a family (see 'ttt list'); all when absent")
            verb.add_argument("--markdown", action="store_true", help="as the Markdown of docs/plugins.md")
        elif name == "check":
            options.check(verb)
        elif name == "eval":
            eval_options.evaluate(verb)
        else:
            verb.add_argument(
                "--config", action="append", default=[], metavar="FILE", help="recipe YAML; later ones win"
            )
            verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the files")
            verb.add_argument(
                "--dry-run", action="store_true", help="print the resolved configuration and the plan, then stop"
            )
            verb.add_argument("--overwrite", action="store_true", help="do it again although the result is there")
        if name in ("generate", "likelihood", "vocode"):
            getattr(options, name)(verb)
        if name == "show":
            verb.add_argument("--uid", default="", help="which example (default: the first)")
            verb.add_argument("--png", default="", metavar="FILE", help="draw the mask of the objective's plan to this file")
        verb.add_argument("--plugins", action="append", default=[], metavar="PATH", help="plug-in file or module")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one verb.  Exit codes: 0 done, 2 something the user can mend (one line on stderr), 1 a fault of the program."""
    grammar = parser()
    arguments, rest = grammar.parse_known_args(argv)
    # argparse takes positional arguments in one run only; settings may stand anywhere between the options.
    unknown = [r for r in rest if r.startswith("-") or "=" not in r or not hasattr(arguments, "overrides")]
    if unknown:
        grammar.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    logging.basicConfig(
        level=os.environ.get("TTT_LOG", "INFO").upper(),
        stream=sys.stderr,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    module, _, function = VERBS[arguments.verb][0].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(arguments) or 0
    except TttError as error:
        if not getattr(error, "quiet", False):  # another rank of the same run says it
            print(f"ttt {arguments.verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"ttt {arguments.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
