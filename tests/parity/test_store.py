"""A store packed with the official settings holds the ids and labels of the official preprocessing."""

import json

import numpy as np

from tests.parity.conftest import need, tensors, with_codes
from ttt.data.sources.build_store import Settings, pack
from ttt.data.sources.mix import sources_of


def test_packed_conversations_equal_the_reference(tmp_path):
    cases = json.loads(need("preprocess/expected.json").read_text())["cases"]
    found = json.loads(need("preprocess/conversations.json").read_text())
    expected = tensors("preprocess/expected.safetensors")
    plain = [c for c in cases if c["kind"] not in ("truncated", "max_len", "text")]
    assert plain
    with (tmp_path / "records.jsonl").open("w") as out:
        for case in plain:
            some = found[case["file"]]
            at = case["index"]
            record = some[at] if isinstance(at, int) else next(r for r in some if r["name"] == at)
            out.write(json.dumps({**record, "id": case["id"]}) + "\n")
    with_codes(need("preprocess/tokenizer.json")).save(tmp_path / "tokenizer")
    settings = Settings(str(tmp_path / "tokenizer"), "official", literal_specials=True)
    store, report = pack(sources_of(tmp_path / "records.jsonl"), tmp_path / "store", settings)
    assert not report.bad and len(store) == len(plain)
    for stream, case in zip(store, plain, strict=True):
        assert stream.ids.tolist() == expected[f"{case['id']}.input_ids"].tolist()
        assert np.where(stream.target, stream.ids, -100).tolist() == expected[f"{case['id']}.labels"].tolist()
        assert stream.prompt_length == case["prompt_length"]
