"""Architectures that break one property each: variants of the one in ``examples/plugin``."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass

import pytest
import torch

from tests.conftest import small_lm
from tests.unit.check.faults import exactly, planted
from ttt.check.core import check
from ttt.config.schema import ModelSection
from ttt.model.valle.arch import Valle

FAULTS, fault = planted()
small = small_lm()


class Variant(small.SmallLM):
    """``network``: the class of the networks that it makes."""

    network = small.SmallNetwork

    def start(self, *args, **kwargs):
        made = super().start(*args, **kwargs)
        made.__class__ = self.network
        return made

    def open(self, *args):
        made = super().open(*args)
        made.__class__ = self.network
        return made


@fault("arch", "members")
@dataclass(frozen=True)
class CannotDecode(Variant):
    class network(small.SmallNetwork):
        hidden_of_rows = property(doc="without a getter: as good as none")


@fault("arch", "facts")
@dataclass(frozen=True)
class LessThanNothing(Variant):
    class network(small.SmallNetwork):
        max_positions = property(lambda self: -1)


@fault("arch", "seed")
@dataclass(frozen=True)
class GlobalDraws(Variant):
    def start(self, *args, **kwargs):
        torch.rand(1)
        return super().start(*args, **kwargs)


@fault("arch", "folder")
@dataclass(frozen=True)
class Nameless(Variant):
    class network(small.SmallNetwork):
        def save(self, folder):
            super().save(folder)
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({"my_model": config}))


@fault("arch", "folder")
@dataclass(frozen=True)
class AlwaysFloat32(Variant):
    def open(self, folder, attention, dtype):
        return super().open(folder, attention, torch.float32)


@fault("arch", "weights")
@dataclass(frozen=True)
class Forgetful(Variant):
    def start(self, section, tokenizer, seed, code_vectors=None, weights=""):
        return super().start(section, tokenizer, seed)


@fault("arch", "refusals")
@dataclass(frozen=True)
class Trusting(Variant):
    def open(self, folder, attention, dtype):
        if not list(folder.glob("*.safetensors")):
            return super().start(ModelSection(), small.TextTokenizer.load(folder), 0)
        return super().open(folder, attention, dtype)


@fault("arch", "logits")
@dataclass(frozen=True)
class NoLoss(Variant):
    class network(small.SmallNetwork):
        def forward(self, x):
            answer = super().forward(x)
            return answer if x.targets is None else answer * 2


@fault("arch", "head")
@dataclass(frozen=True)
class WrongColumns(Variant):
    class network(small.SmallNetwork):
        def head(self, hidden, ids=None):
            logits = super().head(hidden)
            return logits if ids is None else logits[..., : ids.stop - ids.start]


@fault("arch", "mask")
@dataclass(frozen=True)
class SeesAll(Variant):
    """Every position of a batch of several rows sees the sum of all ids; single rows, as in decoding, are right."""

    class network(small.SmallNetwork):
        def hidden(self, input_ids, position_ids, attention_mask, call=None):
            right = super().hidden(input_ids, position_ids, attention_mask, call)
            return right + 0.1 * (input_ids.sum() % 7) if len(input_ids) > 1 else right


@fault("arch", "rows")
@dataclass(frozen=True)
class NoKeys(Variant):
    class network(small.SmallNetwork):
        def hidden_of_rows(self, call):
            return super().hidden_of_rows(call) * (0.5 if call.starts[0] else 1)


@fault("arch", "prepare")
@dataclass(frozen=True)
class Rounds(Variant):
    class network(small.SmallNetwork):
        def prepare(self):
            for parameter in self.parameters():
                parameter.data = parameter.data.bfloat16().float()


@fault("arch", "gradient")
@dataclass(frozen=True)
class Detached(Variant):
    class network(small.SmallNetwork):
        def forward(self, x):
            with torch.no_grad():
                known = self.places.weight.clone()
            own = self.places
            self.places = torch.nn.Embedding.from_pretrained(known)
            answer = super().forward(x)
            self.places = own
            return answer


@fault("arch", "tables")
@dataclass(frozen=True)
class Copies(Variant):
    class network(small.SmallNetwork):
        def token_tables(self):
            return {"embedding": self.ids.weight.detach().clone()}


@fault("arch", "session")
@dataclass(frozen=True)
class HalfASession(Variant):
    class network(small.SmallNetwork):
        def session(self, mask, *, cache="exact", room=0, slots=1):
            return types.SimpleNamespace(admit=print, append=print, reserve=print, row=print)


@pytest.mark.parametrize("family, breaks, cls", FAULTS)
def test_exactly_the_right_property_names_the_fault(family, breaks, cls):
    exactly(family, breaks, cls)


@pytest.mark.parametrize("arch", [small.SmallLM(), Valle(dim=16, heads=2, layers=1)], ids=["small_lm", "valle"])
def test_good_architectures(arch):
    assert not [r for r in check("arch", arch) if r.failed]
