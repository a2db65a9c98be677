import json

import numpy as np
import pytest

from tests.parity.conftest import cases, folder, need, tensors, with_codes
from ttt.data.batches.loader import Loader, fixed_batches
from ttt.data.encode import encode_example
from ttt.data.read.examples import official_record
from ttt.diffusion.strategies import Sst
from ttt.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    return with_codes(need("preprocess/tokenizer.json"))


@pytest.fixture(scope="module")
def records():
    return json.loads(need("preprocess/conversations.json").read_text())


@pytest.fixture(scope="module")
def expected():
    return tensors("preprocess/expected.safetensors")


def _truncate_all(stream, kept, ranges):
    """Cut every assistant turn that may be cut to the drawn number of codes, in order; check the ranges of the draws."""
    kept, ranges, rule = list(kept), list(ranges), Sst()
    for turn in sorted({s.turn for s in stream.segments if s.target and s.style == "last"}):
        number = max(i for i, s in enumerate(stream.segments) if s.turn == turn and s.style == "last")
        limits = rule.keep_range(stream.segments[number].stop - stream.segments[number].start)
        if limits is not None:
            assert limits == ranges.pop(0)
            stream = stream.truncate(number, kept.pop(0))
    assert not kept and not ranges
    return stream


@pytest.mark.parametrize("case", cases("preprocess/expected.json"))
def test_ids_labels_and_prompt_length(case, tokenizer, records, expected):
    found = records[case["file"]]
    record = found[case["index"]] if isinstance(case["index"], int) else {r["name"]: r for r in found}[case["index"]]
    example = official_record(record, case["id"])
    stream = encode_example(example, tokenizer, prompt_rule="official", literal_specials=True)
    if case["kind"] == "truncated" and case["truncated"]:
        single = not isinstance(case["kept_tokens"], list)
        kept = [case["kept_tokens"]] if single else list(case["kept_tokens"])
        ranges = [(case["min_keep"], case["max_keep"])] if single else [tuple(r) for r in case["ranges"]]
        stream = _truncate_all(stream, kept, ranges)
    if case["kind"] in ("max_len", "text"):
        stream = stream.first(case["max_len"])
    ids, labels = stream.ids, np.where(stream.target, stream.ids, -100)
    if case["kind"] == "max_len":
        pad = case["max_len"] - len(ids)
        ids = np.pad(ids, (0, pad), constant_values=tokenizer.vocab.pad_id)
        labels = np.pad(labels, (0, pad), constant_values=-100)
    assert ids.tolist() == expected[f"{case['id']}.input_ids"].tolist()
    assert labels.tolist() == expected[f"{case['id']}.labels"].tolist()
    assert len(ids) == case["length"]
    assert stream.prompt_length == case["prompt_length"]


LONG = [c for c in cases("preprocess/expected.json") if c.values[0] is None or c.values[0]["kind"] == "max_len"]


@pytest.mark.parametrize("case", LONG)
def test_rows_of_training_end_as_in_the_official_program(case, tokenizer, records, expected):
    """`data.long_rows: truncate`, through the loader that trains and the one that validates."""
    stream = encode_example(official_record(records[case["file"]][case["index"]], case["id"]), tokenizer, literal_specials=True)
    options = {"row_tokens": case["max_len"], "batch_tokens": case["max_len"], "seed": 0, "long_rows": "truncate"}
    wanted, labels = (expected[f"{case['id']}.{name}"][: len(stream)].tolist() for name in ("input_ids", "labels"))
    (dev,) = fixed_batches([stream], tokenizer.vocab, **options)
    for batch in (Loader([stream], tokenizer.vocab, **options).micro_batch(0, 0), dev):
        assert batch.ids[0].tolist() == wanted
        assert batch.ids.where(batch.target, -100)[0].tolist() == labels


def test_special_ids_and_records_that_raise(tokenizer, records):
    path = folder() / "preprocess" / "expected.json"
    if not path.is_file():
        pytest.skip(f"no reference numbers at {folder()}")
    found = json.loads(path.read_text())
    for token, number in found["token_ids"].items():
        assert tokenizer.backend.token_to_id(token) == number
    by_name = {r["name"]: r for r in records["hand_written"]}
    for name in found["raises"]:
        with pytest.raises(DataError, match="role"):
            official_record(by_name[name], name)
