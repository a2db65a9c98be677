"""Text beside speech: shares of tokens and of batches, on any number of ranks."""

import dataclasses

import numpy as np
import pytest

from tests.conftest import audio, chat, text, tiny_tokenizer
from ttt.config.schema import DataSection
from ttt.data.batches.loader import Loader
from ttt.data.batches.text_ratio import Alternating, Blend, blended, training_loader
from ttt.data.encode import encode_example
from ttt.data.read.examples import write_examples
from ttt.data.sources.streams import InMemory
from ttt.errors import ConfigError

RATIOS = [0.1, 0.3, 0.5, 2 / 3, 0.9]


@pytest.fixture(scope="module")
def sources():
    """300 texts and 200 spoken answers of different lengths."""
    tokenizer, rng = tiny_tokenizer(), np.random.default_rng(0)
    texts = [chat(f"text-{i}", [text("a cat")], [text("on " * int(rng.integers(1, 30)))]) for i in range(300)]
    spoken = [
        chat(f"tts-{i}", [text("on")], [audio(rng.integers(0, 8, int(rng.integers(4, 60))).tolist(), "last")])
        for i in range(200)
    ]
    made = []
    for task, examples in (("text", texts), ("tts", spoken)):
        made.append(InMemory([encode_example(dataclasses.replace(e, task=task), tokenizer) for e in examples]))
    return (tokenizer.vocab, *made)


def loaders(sources, blend, world=1, accumulate=2, batch_tokens=300):
    vocab, texts, speech = sources
    return [
        blended(
            texts, speech, blend, accumulate,
            lambda streams, n, rank=rank: Loader(
                streams, vocab, row_tokens=100, batch_tokens=batch_tokens, seed=3, accumulate=n, rank=rank, world=world
            ),
        )
        for rank in range(world)
    ]  # fmt: skip


def count(batches):
    """Tokens by task."""
    found = {"text": 0, "tts": 0}
    for batch in batches:
        tasks = np.asarray(batch.tasks)[batch.doc[batch.visible].numpy()]
        for task in found:
            found[task] += int((tasks == task).sum())
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_ratio_is_the_share_of_tokens_within_a_window(sources, world, ratio):
    made = loaders(sources, Blend(ratio, "tokens"), world)
    updates = made[0].updates_per_epoch
    seen = [count(r.micro_batch(u, i) for u in range(updates) for i in range(2)) for r in made]
    total = {task: sum(s[task] for s in seen) for task in seen[0]}
    assert total["text"] / sum(total.values()) == pytest.approx(ratio, abs=0.02)
    for one in seen:  # every rank's own share as well, as far as so few batches tell
        assert one["text"] / sum(one.values()) == pytest.approx(ratio, abs=0.06)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("ratio", RATIOS)
def test_ratio_is_the_share_of_batches(sources, world, ratio):
    made = loaders(sources, Blend(ratio, "batches"), world)
    assert all(isinstance(m, Alternating) for m in made)
    kinds = []
    for number in range(40):
        per_rank = [set(m.micro_batch(*divmod(number, 2)).tasks) for m in made]
        assert all(p == per_rank[0] and len(p) == 1 for p in per_rank), "all ranks read one source at a time"
        kinds.append(per_rank[0] == {"text"})
    for n in range(1, 41):
        assert abs(sum(kinds[:n]) - ratio * n) <= 0.5 + 1e-9
    assert len({m.digest for m in made}) == 1


@pytest.mark.parametrize("ratio, cycle", [(0.5, 5), (0.1, 1), (0.25, 2), (1.0, 10)])
def test_legacy_batches(sources, ratio, cycle):
    made = loaders(sources, Blend(ratio, "legacy_10x"), accumulate=1, batch_tokens=100)[0]
    kinds = [set(made.micro_batch(i, 0).tasks) == {"text"} for i in range(3 * (cycle + 1))]
    assert kinds == ([True] * cycle + [False]) * 3
    text, speech = made.text.updates_per_epoch, made.speech.updates_per_epoch
    assert made.updates_per_epoch == min(text // cycle, speech) * (cycle + 1)


def test_every_batch_of_a_source_comes_once_an_epoch(sources):
    """Half of the batches are text, which has fewer or more of them than speech: each source keeps its own epochs."""
    made = loaders(sources, Blend(0.5, "batches"), accumulate=1)[0]
    uids = [made.micro_batch(i, 0).uids for i in range(2 * made.text.updates_per_epoch)]
    of_text = [u for batch in uids for u in batch if u.startswith("text")]
    assert len(of_text) == len(set(of_text)) == 300
    assert made.epoch_of(made.updates_per_epoch) == 1.0


@pytest.mark.parametrize("number", [0, 1, 7, 999, 10**9])
@pytest.mark.parametrize("mode", ["batches", "legacy_10x"])
def test_turns_count_what_went_before(number, mode):
    blend = Blend(0.3, mode)
    is_text, before = blend.turn(number)
    assert before == (blend.text_before(number) if is_text else number - blend.text_before(number))
    assert blend.text_before(number + 1) - blend.text_before(number) == is_text


def test_refusals():
    with pytest.raises(ConfigError, match="legacy_10x' needs at least 0.1 .* use ratio_mode batches"):
        Blend(0.05, "legacy_10x")


def test_loader_of_the_section(tmp_path):
    tokenizer = tiny_tokenizer()
    for name, said in (("t", [text("on")]), ("s", [audio([1, 2, 3], "last")])):
        write_examples(tmp_path / f"{name}.jsonl", [chat(f"{name}{i}", [text("a cat")], said) for i in range(20)])
    section = DataSection(train=str(tmp_path / "s.jsonl"), row_tokens=60, batch_tokens=60)
    only = training_loader(section, tokenizer, seed=1)
    assert isinstance(only, Loader) and {u[0] for i in range(4) for u in only.micro_batch(i, 0).uids} == {"s"}
    both = dataclasses.replace(section, text=str(tmp_path / "t.jsonl"), ratio_mode="batches")
    found = training_loader(both, tokenizer, seed=1)
    assert isinstance(found, Alternating)
    assert [{u[0] for u in found.micro_batch(i, 0).uids} for i in range(4)] == [{"t"}, {"s"}] * 2
    for ratio, kept in ((0.0, "s"), (1.0, "t")):
        one = training_loader(dataclasses.replace(both, ratio=ratio), tokenizer, seed=1)
        assert isinstance(one, Loader) and {u[0] for u in one.micro_batch(0, 0).uids} == {kept}


def test_losses_are_logged_by_task(sources):
    import torch

    from ttt.objective.library import Ar
    from ttt.rng import generator

    made = loaders(sources, Blend(0.5, "tokens"))[0]
    plan = Ar().plan(made.micro_batch(0, 0), generator(1, "x"))
    term = plan.terms["ar"]
    parts = {name: part.index == i for part in term.partitions for i, name in enumerate(part.names)}
    assert torch.equal(parts["task_text"], ~parts["task_tts"]) and 0 < parts["task_text"].sum() < len(term.target)
    codes = (term.target >= sources[0].code_start) & (term.target < sources[0].code_stop)
    assert not parts["task_text"][codes].any() and codes.any()
