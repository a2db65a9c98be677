"""Verbs between a corpus and training: codec, judge, tokenize, examples, floor."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from ttt.cli.common import component_path, configure, dry_run
from ttt.config.load import to_plain
from ttt.errors import ConfigError, DataError
from ttt.stage import Stage

log = logging.getLogger(__name__)


def codec(arguments: argparse.Namespace) -> int:
    """Fit ``codec`` on the corpus' train split and save it to ``codec.path``."""
    from ttt.audio.wav import read
    from ttt.data.manifest import read_manifest
    from ttt.interfaces import TrainableCodec

    config = configure(arguments, ("codec", "data.corpus"))
    folder = component_path(config.codec, "codec")
    manifest = Path(config.data.corpus) / "train.jsonl"
    if not isinstance(config.codec, TrainableCodec):
        raise ConfigError(
            f"codec: {type(config.codec).registered_name!r} is not trainable; point codec.path at its weights"
        )
    if dry_run(arguments, config, [f"read wavs of {manifest}", f"fit and save to {folder}"]):
        return 0
    stage = Stage("codec", folder / ".done.json", [manifest], [folder], {"codec": to_plain(config.codec), "seed": config.run.seed},
                  "make the corpus first")  # fmt: skip
    if stage.is_done(arguments.overwrite):
        return 0
    started = time.perf_counter()
    utterances = read_manifest(manifest)
    waves = [read(manifest.parent / u.wav) for u in utterances]
    log.info("codec: fitting on %d utterances", len(waves))
    measured = config.codec.fit(waves, config.run.seed)
    config.codec.save(folder)
    stage.finish(measured, time.perf_counter() - started)
    log.info("codec: %s -> %s", ", ".join(f"{k} {v:.4g}" for k, v in measured.items()), folder)
    return 0


def judge(arguments: argparse.Namespace) -> int:
    """Fit ``judge`` on original waveforms of the corpus and save it to ``judge.path``."""
    return _fit_on_corpus(arguments, "judge")


def speaker(arguments: argparse.Namespace) -> int:
    """Fit ``speaker`` on original waveforms of the corpus and save it to ``speaker.path``."""
    return _fit_on_corpus(arguments, "speaker")


def _fit_on_corpus(arguments: argparse.Namespace, key: str) -> int:
    """Fit the component ``key``, which hears recordings, on the manifests of the corpus."""
    from ttt.data.manifest import read_manifest

    config = configure(arguments, (key, "data.corpus"))
    ear = getattr(config, key)
    folder = component_path(ear, key)
    corpus = Path(config.data.corpus)
    manifests = [corpus / "train.jsonl", corpus / "dev.jsonl"]
    if not hasattr(ear, "fit_manifests"):
        raise ConfigError(f"{key}: {type(ear).registered_name!r} is not trainable; point {key}.path at its weights")
    if dry_run(arguments, config, [f"read wavs of {manifests[0]}", f"fit and save to {folder}"]):
        return 0
    stage = Stage(key, folder / ".done.json", manifests, [folder], {key: to_plain(ear), "seed": config.run.seed},
                  "make the corpus first")  # fmt: skip
    if stage.is_done(arguments.overwrite):
        return 0
    started = time.perf_counter()
    train, dev = (read_manifest(m) for m in manifests)
    measured = ear.fit_manifests(train, dev, corpus, config.run.seed)
    ear.save(folder)
    stage.finish(measured, time.perf_counter() - started)
    log.info("%s: %s -> %s", key, ", ".join(f"{k} {v:.4g}" for k, v in measured.items()), folder)
    return 0


def tokenize(arguments: argparse.Namespace) -> int:
    """Encode every split's manifest with the codec."""
    from ttt.tasks.prepare import encode_manifest

    config = configure(arguments, ("codec", "data.corpus", "data.dir"))
    corpus, out = Path(config.data.corpus), Path(config.data.dir)
    manifests = [corpus / f"{split}.jsonl" for split in config.data.splits]
    plan = [f"encode {m} -> {out / 'codes' / m.name}" for m in manifests]
    if dry_run(arguments, config, plan):
        return 0
    loaded = config.codec.load()
    for manifest in manifests:
        target = out / "codes" / manifest.name
        stage = Stage("tokenize", target.with_suffix(".done.json"), [manifest], [target], {"codec": loaded.codec_id},
                      "make the corpus first")  # fmt: skip
        if stage.is_done(arguments.overwrite):
            continue
        started = time.perf_counter()
        result = encode_manifest(manifest, loaded, target, config.data.jobs)
        stage.finish(result, time.perf_counter() - started)
        log.info(
            "tokenize: %s: %d utterances, %.0f per second", manifest.stem, result["utterances"], result["per_second"]
        )
    return 0


def tokenizer(arguments: argparse.Namespace) -> int:
    """The tokenizer of ``model.path`` extended by the audio tokens of ``data.form``, in order -> ``data.tokenizer``.

    Architectures without a backbone get one of bytes, template words and audio tokens.
    """
    from ttt.text.forms import DEFAULT_FORM
    from ttt.text.tokenizer import TextTokenizer, train_bpe

    config = configure(arguments, ("data.tokenizer",))
    alone = not config.model.path and config.model.arch.registered_name != "causal_lm"
    if not config.model.path and not alone:
        raise ConfigError("model.path: missing; name the folder of the backbone whose tokenizer is to be extended")
    source, out = Path(config.model.path) / "tokenizer.json", Path(config.data.tokenizer)
    if not alone and out.resolve() == Path(config.model.path).resolve():
        raise ConfigError("data.tokenizer: is the backbone's own folder; name another, so that it stays as it was")
    if dry_run(arguments, config, [f"make {out}" if alone else f"extend {source} -> {out}"]):
        return 0
    loaded = None if config.codec is None else config.codec.load()
    num_codes, num_codebooks = (config.data.num_codes, 1) if loaded is None else (loaded.num_codes, loaded.num_codebooks)
    if num_codes < 1:
        raise ConfigError(f"data.num_codes: must be >= 1, got {num_codes}")
    form = config.data.form
    codec_id, rate = (
        (config.data.codes_of, config.data.codes_hz) if loaded is None else (loaded.codec_id, loaded.frame_rate_hz)
    )
    settings = {"num_codes": num_codes, **({"num_codebooks": num_codebooks} if num_codebooks > 1 else {})}
    settings |= {"form": form} if form != DEFAULT_FORM else {}
    settings |= {"codec": codec_id, "frame_rate_hz": rate} if codec_id else {}
    stage = Stage(
        "tokenizer", out / "tokenizer.done.json", [] if alone else [source], [out / "tokenizer.json"], settings,
        "name a folder with tokenizer.json",
    )  # fmt: skip
    if stage.is_done(arguments.overwrite):
        return 0
    started = time.perf_counter()
    if alone:
        made = train_bpe(["system user assistant"] * 3, config.data.bpe_size, num_codes, num_codebooks, form)
    else:
        made = TextTokenizer.extended(source, num_codes, num_codebooks=num_codebooks, form=form)
    made = made.made_by(codec_id, rate)
    made.save(out)
    stage.finish({"vocabulary": made.vocab.size}, time.perf_counter() - started)
    log.info("tokenizer: %d ids, codes %d .. %d", made.vocab.size, made.vocab.code_start, made.vocab.code_stop - 1)
    return 0


def examples(arguments: argparse.Namespace) -> int:
    """Tokenizer and examples of every split."""
    from ttt.tasks.prepare import prepare
    from ttt.text.forms import DEFAULT_FORM

    config = configure(arguments, ("codec", "data.corpus", "data.dir"))
    corpus, out = Path(config.data.corpus), Path(config.data.dir)
    codes = [out / "codes" / f"{split}.jsonl" for split in config.data.splits]
    items = [corpus / f"{split}.items.jsonl" for split in config.data.splits]
    if dry_run(arguments, config, [f"build {out / f'{split}.jsonl'}" for split in config.data.splits]):
        return 0
    loaded = config.codec.load()
    settings = {"tasks": to_plain(config.tasks), "bpe_size": config.data.bpe_size, "codec": loaded.codec_id}
    settings |= {"form": config.data.form} if config.data.form != DEFAULT_FORM else {}
    outputs = [*(out / f"{split}.jsonl" for split in config.data.splits), out / "tokenizer"]
    stage = Stage(
        "examples", out / "examples.done.json", [*codes, *items], outputs, settings, "run 'ttt tokenize' first"
    )
    if stage.is_done(arguments.overwrite):
        return 0
    started = time.perf_counter()
    report = prepare(corpus, config.data.splits, out, loaded, config.tasks, config.data.bpe_size, config.data.form)
    stage.finish(report, time.perf_counter() - started)
    for split in config.data.splits:
        log.info("examples: %s: %s", split, ", ".join(f"{k} {v}" for k, v in report[split].items()))
    return 0


def floor(arguments: argparse.Namespace) -> int:
    """Judge's error rates on original and resynthesized speech -> ``eval.out/floor.json``."""
    from ttt.eval.floor import measure_floor

    config = configure(arguments, ("codec", "judge", "data.corpus", "eval.out"))
    if not config.eval.out:
        raise ConfigError("eval.out: missing; name the folder the floor is written to")
    corpus, out = Path(config.data.corpus), Path(config.eval.out)
    manifests = [corpus / f"{split}.jsonl" for split in config.data.splits if split.startswith("test")]
    if not manifests:
        raise DataError("data.splits: no test split to measure the floor on")
    if dry_run(arguments, config, [f"transcribe {m} and its resynthesis" for m in manifests]):
        return 0
    loaded, judge_ = config.codec.load(), config.judge.load()
    settings = {"codec": loaded.codec_id, "judge": judge_.judge_id, "limit": config.eval.limit}
    stage = Stage("floor", out / "floor.done.json", manifests, [out / "floor.json"], settings, "make the corpus first")
    if stage.is_done(arguments.overwrite):
        return 0
    started = time.perf_counter()
    result = measure_floor(manifests, loaded, judge_, config.eval.normalizer, out / "floor.json", config.eval.limit)
    stage.finish(result, time.perf_counter() - started)
    return 0
