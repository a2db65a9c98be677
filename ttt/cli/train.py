"""Train the configured objective; resumes from the latest checkpoint of run.dir.

Reads data.train and data.tokenizer, validates on data.dev, writes checkpoints and metrics to run.dir.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

from ttt.cli.common import add_common, configure, dry_run
from ttt.errors import ConfigError
from ttt.registry import name_of

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(
        parser, "config", "settings", "dry_run", "plugins", overwrite="start anew although run.dir holds a training"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train; the exit code is the trainer's."""
    from ttt.train.learning_rate import check_section, in_epochs

    config = configure(arguments, ("run.dir", "data.train", "data.tokenizer"))
    check_section(config.train)
    objective, name = config.objective, name_of(config.objective)
    steps = config.train.steps
    length = f"{steps} updates" if not in_epochs(config.train) else f"{config.train.epochs:g} epochs"
    plan = [
        f"read examples of {config.data.train}",
        f"train {name!r} for {length}",
        f"write checkpoints to {Path(config.run.dir) / 'checkpoints'}",
    ]
    if dry_run(arguments, config, plan):
        return 0
    from ttt.api import start_model, with_reference
    from ttt.audio.loading import load_part
    from ttt.data.batches.prefetch import Prefetcher
    from ttt.data.batches.text_ratio import training_loader, validation_batches
    from ttt.diffusion.corrupt import NO_MASK
    from ttt.model.arch import check_arch, check_tasks, check_voices
    from ttt.objective.preference import check_pairs
    from ttt.rng import generator
    from ttt.text.tokenizer import TextTokenizer
    from ttt.train.engines import check_engine, check_trainable, world
    from ttt.train.run_folder import check_made_here
    from ttt.train.trainer import Trainer

    check_engine(config.train)
    check_made_here(Path(config.run.dir))  # before data and weights are read
    check_trainable(config.model.attention, config.run.device, config.model.dtype, config.train.autocast)
    check_arch(config.model.arch, objective.arch, f"objective {name!r}")
    check_tasks(config.model.arch, objective, config.tasks)
    if name_of(config.model.arch) == "causal_lm" and not config.train.init_from:
        from ttt.model.backbone import check_preset

        check_preset(config.model)
    if arguments.overwrite:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, overwrite=True))
    data, seed = config.data, config.run.seed
    tokenizer = TextTokenizer.load(data.tokenizer).check_form(data.form).check_pattern(data.pattern)
    config = with_reference(config, tokenizer)
    objective = config.objective
    if tokenizer.vocab.mask_id < 0 and hasattr(objective, "noise"):
        raise ConfigError(NO_MASK)
    rank, size = world()
    if rank:  # every rank would log the same
        logging.getLogger("ttt").setLevel(logging.WARNING)
    strategies = getattr(objective, "strategies", ())
    loader = training_loader(
        data, tokenizer, seed=seed, accumulate=config.train.accumulate, rank=rank, world=size, strategies=strategies
    )
    log.info("train: %s; %d updates an epoch", loader.report.summary(), loader.updates_per_epoch)
    if tokenizer.vocab.codes_together > 1:
        objective.plan(loader.micro_batch(0, 0), generator(seed, "pattern"))  # some cannot: said before weights are read
    dev = validation_batches(data, tokenizer, seed=seed, strategies=strategies)
    check_voices(config.model.arch, objective, loader.streams, dev)
    check_pairs(objective, loader.streams)
    codec = load_part(config, "codec")
    judge = load_part(config, "judge") if config.train.generate_items else None
    model = start_model(config, tokenizer, codec)
    if not config.train.generate_items:
        codec = None  # its code vectors were all that was needed: leave the device to the network
    callbacks = []
    if config.train.generate_items:
        from ttt.api import decode_settings
        from ttt.eval.during_training import answers_in_training
        from ttt.sampling.decoder.decoder import Decoder

        uids = {uid for batch in dev for uid in batch.uids} if data.keep else None
        decoder = Decoder(model, objective.mask, config.eval.sampler, decode_settings(config))
        callbacks.append(answers_in_training(config, decoder, judge, codec, uids))
    batches = Prefetcher(loader, config.train.accumulate, data.prefetch) if data.prefetch else loader
    return Trainer(config, model, objective, batches, dev, callbacks=callbacks).run().exit_code
