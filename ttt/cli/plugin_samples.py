"""What a fresh plug-in of each family does until it is rewritten: small, working, and within its family's promises.

Signatures and docstrings come from `ttt.interfaces`; here are only fields, bodies and what they import.  A family without a
sample gets bodies that raise (`ttt.cli.new_plugin`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """Python source by part.  ``says``: first line of the docstring; ``members``: what stands before the methods."""

    says: str
    imports: str = ""
    members: str = ""
    bodies: Mapping[str, str] = field(default_factory=dict)
    after: str = ""  # further classes, below the plug-in
    frozen: bool = True


SAMPLES: dict[str, Sample] = {
    "mask": Sample(
        "Every position looks at itself and the ``window`` - 1 positions before it.",
        members="window: int = 64  # positions in view\n\nlooks_ahead = \"nothing\"\n\n"
        "def __post_init__(self) -> None:\n    if self.window < 1:\n"
        "        raise ValueError(f\"window must be >= 1, got {self.window}\")",
        bodies={
            "allow": "doc, visible, window = layout.doc, layout.visible, self.window\n"
            "return lambda b, h, q, k: (k <= q) & (q - k < window) & (doc[b, q] == doc[b, k]) & visible[b, k]",
        },
    ),
    "noise": Sample(
        "alpha(t) = (1 - t) ** power.",
        members="power: float = 2.0  # >= 1; 1: linear\n\ndef __post_init__(self) -> None:\n    if self.power < 1:\n"
        "        raise ValueError(f\"power must be >= 1, got {self.power}\")",
        bodies={
            "alpha": "return (1 - t) ** self.power",
            "dalpha": "return -self.power * (1 - t) ** (self.power - 1)",
        },
    ),
    "weighting": Sample(
        "w = p ** -power: between uniform (0) and the likelihood bound of linear noise (1).",
        members="power: float = 0.5\nsmallest: float = 0.001  # of p, so that the weight stays finite",
        bodies={"weight": "return p.clamp(min=self.smallest) ** -self.power"},
    ),
    "strategy": Sample(
        "With probability ``p`` a batch keeps a random share of its maskable positions clean.",
        imports="import torch",
        members="p: float = 0.5  # of doing anything\nkeep: float = 0.3  # share that stays clean then\n\n"
        "def __post_init__(self) -> None:\n    for name in (\"p\", \"keep\"):\n"
        "        if not 0 <= getattr(self, name) <= 1:\n"
        "            raise ValueError(f\"{name} must lie in [0, 1], got {getattr(self, name)}\")",
        bodies={
            "on_maskable": "if float(torch.rand((), generator=gen)) >= self.p:\n    return maskable\n"
            "return maskable & (torch.rand(maskable.shape, generator=gen) >= self.keep)",
        },
    ),
    "objective": Sample(
        "Next-token loss on every target, audio included.",
        imports="from ttt.objective.losses import plan_terms\nfrom ttt.objective.pairs import next_token_term\n"
        "from ttt.registry import component\nfrom ttt.types import Plan",
        members="mask: Any = component(\"mask\", \"causal\")\nnormalize: str = \"sample\"  # sample | token | sum",
        bodies={
            "plan": "term = next_token_term(batch, batch.target, self.normalize)\n"
            "return Plan(batch.ids, batch.position, batch.layout(), self.mask, {\"ar\": term})",
            "terms": "return plan_terms(model, plan)",
        },
    ),
    "initializer": Sample(
        "Normal noise of ``gain`` times the model's own initial spread.",
        imports="import torch",
        members="gain: float = 1.0",
        bodies={"initialize": "return self.gain * context[\"std\"] * torch.randn(rows.shape, generator=gen)"},
    ),
    "remask": Sample(
        "Margin: how far the best logit is above the second best.",
        bodies={
            "score": "two = logits.float().topk(2, dim=-1).values\nreturn (two[..., 0] - two[..., 1]).clamp(max=self.most)",
        },
        members="most: float = 50.0  # larger margins count as this; keeps scores finite",
    ),
    "length": Sample(
        "A span ends where the model ends it, after ``codes`` codes at the latest.",
        members="codes: int = 500\n\ndef __post_init__(self) -> None:\n    if self.codes < 1:\n"
        "        raise ValueError(f\"codes must be >= 1, got {self.codes}\")",
        bodies={"exact_codes": "return None", "max_codes": "return self.codes"},
    ),
    "sampler": Sample(
        "One token a call, from left to right, seeing one mask token ahead.",
        imports="import torch\n\nfrom ttt.sampling.samplers.logits import choose_audio\n"
        "from ttt.sampling.samplers.steps import Block",
        members="gen_length: int = 2600  # most tokens of a span\ntemperature: float = 0.0",
        bodies={
            "span": "for row in range(request.rows):\n"
            "    index = torch.tensor([row], device=request.device)\n"
            "    done = torch.empty(0, dtype=torch.long, device=request.device)\n"
            "    mask = torch.full((1,), request.mask_id, dtype=torch.long, device=request.device)\n"
            "    total, forced, ended = request.total(row, self.gen_length), request.forced(row), False\n"
            "    while not ended and len(done) < total:\n"
            "        if forced is not None and len(done) == total - 1:\n"
            "            new = torch.full_like(mask, forced)\n"
            "        else:\n"
            "            logits = request.predict(index, torch.cat([done, mask])[None], 1)  # [1, 1, V]\n"
            "            place = torch.full((1, 1), len(done), device=request.device)\n"
            "            logits = request.restricted(index, logits, place)\n"
            "            new = choose_audio(logits, self.temperature, [request.gens[row]])[0]\n"
            "        new, ended = request.cut(row, new)\n"
            "        done = torch.cat([done, new])\n"
            "        yield Block(row, new, ended)",
        },
    ),
    "codec": Sample(
        "One code per frame: its loudness; decoding gives a tone that is as loud.",
        imports="import numpy as np\n\nfrom ttt.errors import DataError\nfrom ttt.types import AudioCodes, Waveform",
        members="num_codes: int = 64\nrate_hz: int = 16_000\nframe_rate_hz: float = 50.0\n\n"
        "num_codebooks = 1\nexact_stream = True\n\n"
        "def __post_init__(self) -> None:\n"
        "    self.hop = round(self.rate_hz / self.frame_rate_hz)  # samples per frame\n"
        "    self.codec_id = f\"@NAME@-{self.num_codes}x{self.hop}\"\n\n"
        "def tone(self, ids: np.ndarray) -> np.ndarray:\n"
        "    \"\"\"Samples f32 [F * hop] of codes [F, 1].\"\"\"\n"
        "    if ids.size and not 0 <= ids.min() <= ids.max() < self.num_codes:\n"
        "        raise DataError(f\"codec '@NAME@': code {ids.max()} is outside the codebook of {self.num_codes}\")\n"
        "    wave = np.sin(2 * np.pi * 4 * np.arange(self.hop) / self.hop)  # whole periods: frames meet at zero\n"
        "    return (ids[:, :1] / self.num_codes * wave).astype(np.float32).reshape(-1)",
        bodies={
            "load": "return self",
            "encode": "found = []\n"
            "for wave in waves:\n"
            "    if wave.rate_hz != self.rate_hz or not len(wave.samples):\n"
            "        raise DataError(f\"codec '@NAME@': expected a sound at {self.rate_hz} Hz, got {wave.rate_hz} Hz\")\n"
            "    frames = -(-len(wave.samples) // self.hop)\n"
            "    padded = np.zeros(frames * self.hop)\n"
            "    padded[: len(wave.samples)] = wave.samples\n"
            "    loud = np.sqrt(2 * np.square(padded.reshape(frames, self.hop)).mean(1))\n"
            "    ids = np.clip(np.round(loud * self.num_codes), 0, self.num_codes - 1).astype(np.int32)[:, None]\n"
            "    found.append(AudioCodes(ids, self.frame_rate_hz, self.codec_id))\n"
            "return found",
            "decode": "return [Waveform(self.tone(c.ids), self.rate_hz) for c in codes]",
            "stream_decoder": "return FrameByFrame(self)",
        },
        after="class FrameByFrame(StreamDecoder):\n"
        "    \"\"\"Frames do not depend on each other: each is final when it comes.\"\"\"\n\n"
        "    def __init__(self, codec: @CLASS@) -> None:\n        self.codec = codec\n\n"
        "    def push(self, codes: np.ndarray) -> np.ndarray:\n"
        "        \"\"\"Samples of these frames.\"\"\"\n        return self.codec.tone(codes)\n\n"
        "    def finish(self) -> np.ndarray:\n"
        "        \"\"\"Nothing is held back.\"\"\"\n        return np.zeros(0, dtype=np.float32)",
        frozen=False,
    ),
    "task": Sample(
        "A text question, a text answer.",
        imports="from ttt.types import Example, Span, Turn",
        members="system: str = \"answer the question\"  # the system message",
        bodies={
            "build": "turns = (\n    Turn(\"system\", (Span(\"text\", self.system),)),\n"
            "    Turn(\"user\", (Span(\"text\", item[\"text_in\"]),)),\n"
            "    Turn(\"assistant\", (Span(\"text\", item[\"text_out\"]),)),\n)\n"
            "meta = {\"text_ref\": item[\"text_out\"], \"split\": item.get(\"split\", \"\")}\n"
            "return Example(item[\"id\"], turns, self.label, meta)",
            "prompt": "return Example(example.uid, example.turns[:-1], example.task, example.meta)",
            "metrics": "return {\"wer\": \"wer\", \"exact_match\": \"exact_match\"}",
        },
    ),
    "metric": Sample(
        "Share of answers whose first word is the reference's.",
        imports="import numpy as np",
        members="unit = \"rate\"\nrests_on = (\"normalizer\",)\nhigher_is_better = True",
        bodies={
            "item": "if scored[\"text\"] is None or not scored[\"text_ref\"]:\n    return None\n"
            "said, wanted = (scored[\"normalize\"](scored[k]).split() for k in (\"text\", \"text_ref\"))\n"
            "return np.array([said[:1] == wanted[:1], 1], dtype=np.float64)",
            "total": "return float(statistics[0] / statistics[1]) if statistics[1] else float(\"nan\")",
        },
    ),
    "optimizer": Sample(
        "Stochastic gradient descent with momentum.",
        imports="import torch",
        members="momentum: float = 0.9",
        bodies={
            "build": "trained = [p for p in model.parameters() if p.requires_grad]\n"
            "return torch.optim.SGD(trained, lr=train.lr, momentum=self.momentum, weight_decay=train.weight_decay)",
        },
    ),
    "lr_schedule": Sample(
        "Falls with a power of the share of the decay that is over.",
        members="power: float = 2.0",
        bodies={"decay": "return (1 - at.decayed) ** self.power"},
    ),
    "converter": Sample(
        "Lines of question, tab, answer.",
        imports="from ttt.data.read.records import RecordError\nfrom ttt.errors import DataError",
        members="system: str = \"\"  # the system message of every chat",
        bodies={
            "rows": "if not path.is_file():\n    raise DataError(f\"{path}: no such file\")\n"
            "with path.open(\"rb\") as lines:\n    for number, line in enumerate(lines, 1):\n"
            "        yield f\"{path}:{number}\", line",
            "convert": "try:\n    question, answer = row.decode(\"utf-8\").strip().split(\"\\t\")\n"
            "except (AttributeError, UnicodeDecodeError, ValueError):\n"
            "    wanted = \"expected question, tab, answer as UTF-8\"\n"
            "    raise RecordError(where, \"not two columns\", f\"{wanted}; mend or drop the line\") from None\n"
            "said = {\"system\": self.system, \"user\": question, \"assistant\": answer}\n"
            "turns = [{\"role\": role, \"spans\": [{\"text\": text}] if text else []} for role, text in said.items()]\n"
            "return {\"uid\": where, \"task\": \"chat\", \"turns\": turns, \"meta\": {}}",
            "sample": "path = folder / \"chats.tsv\"\n"
            "path.write_text(\"how are you\\tfine\\nand now\\tbetter\\n\", encoding=\"utf-8\")\nreturn path",
        },
    ),
    "rate": Sample(
        "Times that rise from a part of themselves to themselves while the first ``share`` of the updates is made.",
        members="share: float = 0.5\nleast: float = 0.2  # factor at the start\n\n"
        "def __post_init__(self) -> None:\n    if not 0 < self.share <= 1 or not 0 <= self.least <= 1:\n"
        "        raise ValueError(f\"share must lie in (0, 1], least in [0, 1], got {self.share}, {self.least}\")",
        bodies={"times": "done = min(progress / self.share, 1.0)\nreturn t * (self.least + (1 - self.least) * done)"},
    ),
    "constraint": Sample(
        "The code at place k belongs to position k mod Q of its frame, and a span has whole frames.",
        members="least: int = 0  # frames of a span that is not empty",
        bodies={
            "ranges": "return tuple((int(a), int(b)) for a, b in codebooks)",
            "range_at": "return places % len(codebooks)",
            "may_end": "return (places % len(codebooks) == 0) & ((places == 0) | (places >= self.least * len(codebooks)))",
        },
    ),
    "normalizer": Sample(
        "Small letters, single blanks.",
        bodies={"normalize": "return \" \".join(text.lower().split())"},
    ),
}  # fmt: skip
