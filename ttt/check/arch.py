"""What an architecture owes: networks that every part of the toolkit can work with (`ttt.interfaces.Network`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttt.check import world
from ttt.check.core import NotSaid, need, prop
from ttt.config.schema import ModelSection
from ttt.errors import TttError
from ttt.interfaces import Arch, LanguageModel, Network, OwnSession
from ttt.masks.library import Causal, Prefix
from ttt.masks.materialize import IMPLEMENTATIONS, materialize
from ttt.model.arch import missing_members
from ttt.model.folder import stored_arch
from ttt.registry.families import INITIALIZER
from ttt.types import ModelInputs, PackedBatch

SESSION = ("admit", "append", "reserve", "row", "run")  # methods of ttt.sampling.decoder.session.Session


def _start(arch: Arch, seed: int = 0, weights: str | Path = "") -> Any:
    section = ModelSection(
        arch=arch, attention="sdpa", init=INITIALIZER.build("normal", "model.init"), **arch.example
    )  # fmt: skip
    return arch.start(section, world.tokenizer(), seed, weights=weights)


def _language_model(arch: Arch) -> Any:
    """A network in evaluation mode.  Raises `NotSaid` when it is no language model."""
    network = _start(arch).eval()
    if missing_members(network, LanguageModel):
        raise NotSaid("said of language models (ttt.interfaces.LanguageModel)")
    return network


@contextmanager
def _saved(network: Network) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        network.save(folder)
        yield folder


def _difference(one: Any, two: Any) -> str:
    """Name of the first parameter that differs between two networks, or nothing."""
    first, second = dict(one.named_parameters()), dict(two.named_parameters())
    names = sorted(first.keys() ^ second.keys())
    return names[0] if names else next((n for n, p in first.items() if not torch.equal(p, second[n])), "")


def _close(one: Tensor, two: Tensor) -> bool:
    """Equal up to the rounding of float32, whatever the order of computation."""
    return torch.allclose(one, two, atol=1e-4, rtol=1e-4)


def _inputs(network: Any, batch: PackedBatch, **more: Any) -> ModelInputs:
    """The batch under causal attention; all visible positions are selected."""
    mask = materialize(Causal(), batch.layout(), network.attention, network.dtype)
    select = batch.visible.flatten().nonzero()[:, 0]
    return ModelInputs(batch.ids, batch.position, mask, select, **more)


@prop("arch", "members", "a network has the members of `Network`, and all of `LanguageModel` or a session of its own")
def _members(arch: Arch) -> None:
    network = _start(arch)
    need(isinstance(network, nn.Module), f"start gives a {type(network).__name__}, not a torch.nn.Module")
    lacks = missing_members(network, Network)
    need(not lacks, f"{type(network).__name__} lacks {', '.join(lacks)}")
    lacks = missing_members(network, LanguageModel)
    own = not missing_members(network, OwnSession)
    need(not lacks or own, f"{type(network).__name__} cannot be decoded: it has no session and lacks {', '.join(lacks)}")


@prop("arch", "facts", "type, place, ids and attention of a network are what it says they are")
def _facts(arch: Arch) -> None:
    network = _start(arch)
    parameter = next(network.parameters())
    need(network.dtype == torch.float32 == parameter.dtype, f"dtype is {network.dtype}, weights are {parameter.dtype}")
    need(network.device == parameter.device, f"device is {network.device}, weights are on {parameter.device}")
    need(network.attention in IMPLEMENTATIONS, f"attention {network.attention!r}: no mask can be made for it")
    size = network.tokenizer.vocab.size
    need(network.tokenizer is world.tokenizer(), "tokenizer is not the one that start was given")
    need(network.num_ids >= size, f"num_ids is {network.num_ids}, the vocabulary has {size} ids")
    need(network.max_positions >= 0, f"max_positions is {network.max_positions}; 0 stands for no limit")
    need(network.training, "start gives a network in evaluation mode, and training begins with it")


@prop("arch", "seed", "weights follow from the seed, and no other random numbers are used up")
def _seed(arch: Arch) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = _start(arch, 1)
    need(torch.equal(before, torch.get_rng_state()), "start draws from the global generator; use torch.random.fork_rng()")
    torch.manual_seed(4)
    name = _difference(one, _start(arch, 1))
    need(not name, f"{name} differs between two starts with one seed")
    need(_difference(one, _start(arch, 2)), "all weights are the same under another seed")


@prop("arch", "folder", "what `save` writes, `open` reads: the same weights, vocabulary and answers")
def _folder(arch: Arch) -> None:
    network = _start(arch).eval()
    with _saved(network) as folder:
        again = arch.open(folder, "sdpa", torch.float32).eval()
        named = str((stored_arch(folder) or {"name": "causal_lm"})["name"])
        name = getattr(type(arch), "registered_name", named)
        need(named == name, f"config.json says the folder is of architecture {named!r}, not {name!r} (ttt.model.folder.KEY)")
        name = _difference(network, again)
        need(not name, f"{name} is not what was saved")
        same = again.tokenizer.vocab.digest == network.tokenizer.vocab.digest
        need(same, "the vocabulary is not the one that was saved")
        narrow = arch.open(folder, "sdpa", torch.bfloat16)
        need(narrow.dtype == torch.bfloat16, f"asked for bfloat16, open gives {narrow.dtype}")


@prop("arch", "weights", "a run can start with the weights of a folder")
def _weights(arch: Arch) -> None:
    network = _start(arch, 1)
    with _saved(network) as folder:
        name = _difference(network, _start(arch, 2, weights=folder))
    need(not name, f"{name} is not that of the folder that start was given as weights")


@prop("arch", "refusals", "a folder without its weights is refused with a `TttError`")
def _refusals(arch: Arch) -> None:
    with _saved(_start(arch)) as folder:
        for path in folder.glob("*.safetensors"):
            path.unlink()
        try:
            arch.open(folder, "sdpa", torch.float32)
        except TttError as error:
            need(str(folder) in str(error), f"the message does not name the folder: {error}")
            return
    need(False, "open reads a folder without *.safetensors")


@prop("arch", "logits", "a forward pass gives logits of all ids where they are asked for, or -log p of targets")
def _logits(arch: Arch) -> None:
    network = _language_model(arch)
    batch = world.batch()
    with torch.no_grad():
        x = _inputs(network, batch)
        logits = network(x)
        wanted = (len(x.select), network.num_ids)
        need(
            logits.dtype == torch.float32 and logits.shape == wanted,
            f"logits are {logits.dtype} {list(logits.shape)}, not float32 {list(wanted)}",
        )
        need(logits.isfinite().all(), "some logits are not finite")
        targets = batch.ids.flatten()[x.select]
        nll = network(_inputs(network, batch, targets=targets))
    expected = -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    need(nll.shape == expected.shape, f"-log p of {len(expected)} targets is {list(nll.shape)}")
    off = float((nll.float() - expected).abs().max())
    need(off < 1e-3, f"-log p of targets differs from the softmax of the logits by up to {off:.2g}")


@prop("arch", "head", "`head` of `hidden` are the logits; of a range of ids, their columns")
def _head(arch: Arch) -> None:
    network = _language_model(arch)
    x = _inputs(network, world.batch())
    with torch.no_grad():
        hidden = network.hidden(x.input_ids, x.position_ids, x.attention_mask).flatten(0, 1)[x.select]
        logits = network.head(hidden)
        part = network.head(hidden, slice(7, 19))
        need(_close(logits, network(x)), "head(hidden(...)) is not what the forward pass gives")
    need(
        part.shape == (len(hidden), 12) and _close(part, logits[:, 7:19]),
        "head(hidden, slice(7, 19)) is not columns 7 to 18 of head(hidden)",
    )


@prop("arch", "mask", "a token changes nothing for positions that may not look at it, and something for those that may")
def _mask(arch: Arch) -> None:
    network = _language_model(arch)
    batch = world.batch()
    at = int(batch.visible[0].sum()) // 2
    x = _inputs(network, batch)
    other = x.input_ids.clone()
    other[0, at] = (other[0, at] + 1) % world.tokenizer().vocab.text_vocab
    with torch.no_grad():
        before, after = (network.hidden(ids, x.position_ids, x.attention_mask)[0] for ids in (x.input_ids, other))
    seen = [n for n in range(at) if not _close(before[n], after[n])]
    need(not seen, f"position {seen[:1]} changes with the token at position {at}, which causal attention hides from it")
    need(not _close(before[at], after[at]), f"position {at} does not change with its own token")


def _decoded(network: Any, ids: Tensor) -> Tensor:
    """Hidden states [T, D] of one row i64 [T] in two decoding calls, the second with the keys of the first."""
    from ttt.model.cache import PackedCall, SlotCache

    cache, cut, parts = SlotCache(1, len(ids)), len(ids) // 2, []
    for start, stop in ((0, cut), (cut, len(ids))):
        call, n = PackedCall(cache), stop - start
        mask = torch.ones(n, stop, dtype=torch.bool).tril(start)
        call.add(ids[start:stop], 0, start, torch.arange(n), mask)
        parts.append(network.hidden_of_rows(call))
    return torch.cat(parts)


def _row(network: Any) -> tuple[Tensor, Tensor]:
    """Ids i64 [T] of one document, and its hidden states [T, D] in one pass."""
    stream = world.streams(1, 1)[0]
    x = _inputs(network, world.pack([[stream]]))
    return x.input_ids[0], network.hidden(x.input_ids, x.position_ids, x.attention_mask)[0]


@prop("arch", "rows", "decoding with cached keys gives the hidden states of one pass over everything")
def _rows(arch: Arch) -> None:
    network = _language_model(arch)
    with torch.no_grad():
        ids, expected = _row(network)
        off = float((_decoded(network, ids) - expected).abs().max())
    need(off < 1e-3, f"hidden_of_rows in two calls differs from hidden by up to {off:.2g}")


@prop("arch", "prepare", "`prepare` changes neither weights nor results, and training is possible afterwards")
def _prepare(arch: Arch) -> None:
    network, untouched = _start(arch).eval(), _start(arch).eval()
    compare: Callable[[Any], Tensor] | None = None
    if not missing_members(network, LanguageModel):
        ids, _ = _row(untouched)
        compare = lambda net: net.head(_decoded(net, ids))  # noqa: E731
    with torch.no_grad():
        before = compare(network) if compare else None
        network.prepare()
        name = _difference(network, untouched)
        need(not name, f"prepare changes {name}")
        if compare:
            need(_close(before, compare(network)), "logits are others after prepare")  # type: ignore[arg-type]
    network.train()
    need(network.training, "train() after prepare does not bring training mode back")
    name = _difference(network, untouched)
    need(not name, f"train() after prepare changes {name}")


@prop("arch", "gradient", "every parameter that is trained gets a gradient")
def _gradient(arch: Arch) -> None:
    _language_model(arch)
    network = _start(arch)
    batch = world.batch()
    targets = batch.ids.flatten()[batch.visible.flatten()]
    network(_inputs(network, batch, targets=targets)).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            need(gradient is not None and bool(gradient.any()), f"{name} gets no gradient from a batch of text and speech")
            need(gradient.isfinite().all(), f"the gradient of {name} is not finite")  # type: ignore[union-attr]


@prop("arch", "tables", "`token_tables` gives the weights of single ids, one row for each")
def _tables(arch: Arch) -> None:
    network = _language_model(arch)
    tables = network.token_tables()
    need("embedding" in tables, f"token_tables gives {', '.join(tables) or 'nothing'}, and no 'embedding'")
    size = world.tokenizer().vocab.size
    for name, table in tables.items():
        need(table.ndim == 2 and len(table) >= size, f"{name} is {list(table.shape)}, the vocabulary has {size} ids")
    x = _inputs(network, world.batch())
    number = int(x.input_ids[0, 0])
    with torch.no_grad():
        before = network.hidden(x.input_ids, x.position_ids, x.attention_mask)[0, 0].clone()
        tables["embedding"][number] += torch.linspace(0, 1, tables["embedding"].shape[1])
        after = network.hidden(x.input_ids, x.position_ids, x.attention_mask)[0, 0]
    need(not _close(before, after), f"the embedding's row {number} is not what the network reads for id {number}")


@prop("arch", "session", "a decoding state of the network's own has the methods of `Session`")
def _session(arch: Arch) -> None:
    network = _start(arch).eval()
    if missing_members(network, OwnSession):
        raise NotSaid("the network has no session of its own: its rows are decoded by ttt.sampling.decoder.session")
    session = network.session(Prefix(), cache="exact", room=16, slots=2)
    lacks = [name for name in SESSION if not callable(getattr(session, name, None))]
    need(not lacks, f"session() gives a {type(session).__name__}, which lacks {', '.join(lacks)}")
