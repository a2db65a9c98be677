import json

import numpy as np
import pytest
import torch

from tests.conftest import gen, pack, random_streams, tiny_model
from tests.tiny_runs import SYSTEMS, make_run
from ttt.cli.main import main
from ttt.errors import ConfigError
from ttt.inspection.attention import KINDS, Tally, has_time, kinds_of, measure, plan_at, summary, table
from ttt.inspection.results import results_folder
from ttt.masks.materialize import dense
from ttt.objective.library import Ar
from ttt.registry.families import MASK, OBJECTIVE


def one_row(seed=0):
    """A batch of one row with one document that holds speech."""
    stream = next(s for s in random_streams(seed, 9) if (s.kind[s.target] == 2).sum() > 4)
    return pack([[stream]])


def mid_plan(objective="ttt", time=0.5, seed=0):
    built = OBJECTIVE.build(SYSTEMS[objective][0] if objective in SYSTEMS else objective, "objective")
    return plan_at(built, one_row(seed), time if has_time(built) else None, gen(1))


@pytest.fixture(scope="module")
def eager():
    return tiny_model(attention="eager")


@pytest.mark.parametrize("name", MASK.names())
def test_rows_are_distributions_over_what_the_mask_allows(eager, name):
    plan = Ar(mask=MASK.build(name, "mask")).plan(one_row(), gen())
    allowed = dense(plan.mask, plan.layout)[0]
    maps = eager.attention_maps(plan)
    assert len(maps) == 2 and maps[0].shape == (4, *allowed.shape)
    for heads in maps:
        assert torch.allclose(heads.sum(-1), torch.ones(()), atol=1e-5)
        assert float((heads * ~allowed).max()) == 0


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_other_backbones(kind):
    plan = mid_plan()
    (first, _) = tiny_model(kind, attention="eager").attention_maps(plan)
    assert torch.allclose(first.sum(-1), torch.ones(()), atol=1e-5)
    assert float((first * ~dense(plan.mask, plan.layout)[0]).max()) == 0


def test_the_first_layer_by_hand(eager):
    plan = mid_plan()
    hf = eager.hf
    layer = hf.model.layers[0]
    with torch.no_grad():
        x = layer.input_layernorm(hf.model.embed_tokens(plan.input_ids))
        cos, sin = hf.model.rotary_emb(x, plan.position_ids)

        def turned(y, heads):
            y = y.view(1, -1, heads, 8).transpose(1, 2)
            half = torch.cat([-y[..., 4:], y[..., :4]], -1)
            return y * cos + half * sin

        q, k = turned(layer.self_attn.q_proj(x), 4), turned(layer.self_attn.k_proj(x), 2).repeat_interleave(2, 1)
        score = (q @ k.transpose(2, 3)) / 8**0.5
        wanted = score.masked_fill(~dense(plan.mask, plan.layout)[:, None], -torch.inf).softmax(-1)[0]
    assert torch.allclose(eager.attention_maps(plan)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("objective", sorted(SYSTEMS))
def test_measures_against_loops(objective):
    plan = mid_plan(objective)
    t = plan.input_ids.shape[1]
    allowed = dense(plan.mask, plan.layout)[0]
    maps = [torch.rand(3, t, t, generator=gen(i)).masked_fill(~allowed, 0) for i in range(2)]
    maps = [m / m.sum(-1, keepdim=True) for m in maps]
    mask_id = tiny_model().tokenizer.vocab.mask_id
    kinds = kinds_of(plan, mask_id)
    found = summary(measure(maps, plan, mask_id))
    assert set(found) == {KINDS[k] for k in set(kinds.tolist())}
    position = plan.position_ids[0].tolist()
    for name, part in found.items():
        rows = [q for q in range(t) if kinds[q] == KINDS.index(name)]
        assert part["queries"] == len(rows)
        alike = np.mean(
            [[np.mean([kinds[k] == c for k in range(t) if allowed[q, k]]) for c in range(4)] for q in rows], 0
        )
        assert list(part["uniform"].values()) == pytest.approx(alike.tolist())
        for layer in range(2):
            for head in range(3):
                a = maps[layer][head].double().numpy()
                v = part["layers"][layer]["heads"][head]
                entropy = [-sum(p * np.log(p) for p in a[q] if p > 0) for q in rows]
                assert v["entropy"] == pytest.approx(np.mean(entropy))
                most = sum(np.log(int(allowed[q].sum())) for q in rows)
                assert v["entropy_share"] == pytest.approx(sum(entropy) / most)
                far = [sum(a[q, k] * abs(position[k] - position[q]) for k in range(t)) for q in rows]
                assert v["distance"] == pytest.approx(np.mean(far))
                ahead = [sum(a[q, k] for k in range(t) if position[k] > position[q]) for q in rows]
                assert v["ahead"] == pytest.approx(np.mean(ahead), abs=1e-9)
                for c, kind in enumerate(KINDS):
                    assert v["to"][kind] == pytest.approx(np.mean([a[q][kinds == c].sum() for q in rows]), abs=1e-6)


def test_looking_at_all_alike_is_the_reference():
    plan = mid_plan()
    allowed = dense(plan.mask, plan.layout)[0].float()
    found = summary(
        measure([(allowed / allowed.sum(-1, keepdim=True))[None]], plan, tiny_model().tokenizer.vocab.mask_id)
    )
    for part in found.values():
        mean = part["layers"][0]["mean"]
        assert mean["entropy_share"] == pytest.approx(1) and mean["to"] == pytest.approx(part["uniform"], abs=1e-6)
    text = table(found, heads=True)
    assert "x1.00" in text and "x1.01" not in text and "   0.0 " in text and "who looks: mask" in text


def test_examples_add_up_by_position():
    one, two = (Tally(np.full((1, 1, 8), v), np.full(4, v), n) for v, n in ((2.0, 1), (10.0, 3)))
    one.add(two)
    assert summary({"text": one})["text"]["layers"][0]["mean"]["entropy"] == 3.0 and one.n == 4


def test_times():
    batch, built = one_row(), OBJECTIVE.build("ttt", "objective")
    mask_id = tiny_model().tokenizer.vocab.mask_id
    masked = [(plan_at(built, batch, t, gen(3)).input_ids == mask_id).sum() for t in (0.0, 0.3, 1.0)]
    assert masked[0] <= masked[1] <= masked[2] == built.maskable(batch).sum()
    assert torch.equal(plan_at(built, batch, 0.3, gen(3)).input_ids, plan_at(built, batch, 0.3, gen(3)).input_ids)
    with pytest.raises(ConfigError, match=r"--time: must lie in \[0, 1\], got 1.5"):
        plan_at(built, batch, 1.5, gen())
    with pytest.raises(ConfigError, match="objective 'ar' has no diffusion time"):
        plan_at(Ar(), batch, 0.5, gen())
    assert torch.equal(plan_at(Ar(), batch, None, gen()).input_ids, batch.ids)


def test_other_attention_is_refused():
    with pytest.raises(ConfigError, match="need model.attention=eager; this model runs 'sdpa'"):
        tiny_model().attention_maps(mid_plan())


@pytest.mark.parametrize("system", ["dual_stream", "ar"])
def test_the_verb(system, tmp_path, capsys):
    run = make_run(tmp_path / "run", system)
    argv = ["inspect", "attention", str(run), "--examples", str(run / "examples.jsonl")]
    times = [None] if system == "ar" else [0.2, 1.0]
    options = ["--heads"] if system == "ar" else ["--time", "0.2", "--time", "1"]
    assert main([*argv, "--uid", "c", *options, "--layers", "-1"]) == 0
    out = run / "inspect" / "attention"
    labels = ["clean"] if system == "ar" else ["t0.20", "t1.00"]
    names = {f"layers.{x}.png" for x in labels}
    names |= {"c.layers.png", "c.layer01.png"} if system == "ar" else {f"c.{x}.layers.png" for x in labels}
    assert {p.name for p in out.glob("*.png")} == names and all(p.stat().st_size > 5000 for p in out.glob("*.png"))
    report = json.loads((out / "attention.json").read_text())
    assert report["examples"] == ["c"] and [x["time"] for x in report["times"]] == times
    assert all(q["uniform"] for x in report["times"] for q in x["queries"].values())
    shown = capsys.readouterr().out
    assert "who looks: text" in shown and ("who looks: mask" in shown) == (system != "ar")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard")).Reload()
    found = board.Tags()
    assert f"attention/{labels[0]}/text/entropy" in found["scalars"] and len(found["images"]) == len(names)
    before = (out / "attention.json").read_text()
    assert main([*argv, "--max-gib", "0.0001"]) == 2
    assert "example 'a': " in (err := capsys.readouterr().err) and "2 layers x 4 heads, the limit is 0.0001" in err
    assert main([*argv, "--layers", "7"]) == 2 and "there is no layer 7; the model has 2" in capsys.readouterr().err
    assert main([*argv, "--uid", "z"]) == 2 and "no example with uid 'z'" in capsys.readouterr().err
    assert main([*argv, "--out", str(run)]) == 2 and "examples.jsonl; name another folder" in capsys.readouterr().err
    assert (out / "attention.json").read_text() == before and not list(out.parent.glob(".*tmp"))


def test_memory_is_counted_in_squares():
    model = tiny_model()
    assert model.attention_map_bytes(200) == 4 * model.attention_map_bytes(100) == 4 * (2 + 4) * 4 * 200 * 200


def test_results_never_go_into_a_checkpoint(tmp_path):
    run = make_run(tmp_path / "run", "ar")
    step = run / "checkpoints" / "step-00000003"
    (step / "model").mkdir(parents=True)
    for name in ("config.yaml", "COMPLETE"):
        (step / name).write_text("")
    for place in (run, step, step / "model"):
        assert results_folder(place, "", "x", "x.json") == run / "inspect" / "x"
    with pytest.raises(ConfigError, match="lies in no run folder; say where results go with --out"):
        results_folder(tmp_path, "", "x", "x.json")
