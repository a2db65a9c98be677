"""Is what a model says likely?  Perplexity of its answers under a text language model; needs no reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ttt.errors import CheckpointError, TttError
from ttt.eval.metrics import ratio
from ttt.interfaces import Metric, OwnDevice
from ttt.io.devices import pick_device
from ttt.registry.families import METRIC

if TYPE_CHECKING:
    from torch import Tensor

_MEND = "point the metric's path at a folder saved by save_pretrained of a causal language model and of its tokenizer"


@METRIC.register("gen_ppl")
@dataclass(frozen=True)
class GenPpl(Metric):
    """Generative perplexity: exp of the mean -log p, over the tokens of all answers, under a causal LM of transformers.

    Each answer is scored by itself, without the prompt, as the LM's tokenizer gives it; its first token is context
    only.  What the judge hears is scored as the judge writes it.  Source: Lakhotia et al., arXiv 2102.01192, section 4.2,
    and slamkit's ``asr_perplexity``, which averages the mean -log p of answers where this one averages over tokens.
    """

    path: str = ""  # folder of the language model and its tokenizer
    of: Literal["speech", "text"] = "speech"  # what the judge hears of the answer, or the answer's text
    device: OwnDevice = "auto"  # where the language model computes

    unit: ClassVar[str] = "score"
    higher_is_better: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False

    @property
    def needs_audio(self) -> bool:  # type: ignore[override]
        """Only where the answer's speech is scored."""
        return self.of == "speech"

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The judge, where it hears the answers, and the language model."""
        return ("judge" if self.of == "speech" else "text", "model")

    @property
    def model_id(self) -> str:
        """Kind and digest of the language model: ``llama-1a2b3c4d``."""
        return self._scorer().model_id

    def load(self) -> None:
        """Load the language model.  Raises `CheckpointError` for a path that is not set, or holds none."""
        self._scorer()

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: sum of -log p in nats, tokens; None where nobody listened.  Less than two tokens add nothing."""
        text = scored["judged_text"] if self.of == "speech" else scored["text"]
        return None if text is None else np.array(self._scorer().nll(text), dtype=np.float64)

    def total(self, statistics: np.ndarray) -> float:
        """exp(sum / tokens)."""
        return float(np.exp(ratio(statistics[0], statistics[1])))

    def _scorer(self) -> _Scorer:
        if not self.path:
            raise CheckpointError(f"metric 'gen_ppl': path is not set: {_MEND}")
        return _opened(self.path, pick_device(self.device or "auto", "device of metric 'gen_ppl'"))


@dataclass(frozen=True)
class _Scorer:
    model: Any
    tokenizer: Any
    model_id: str

    def nll(self, text: str) -> tuple[float, int]:
        """(-log p in nats, tokens scored).

        A text longer than the model's context is scored in pieces; each begins with the last token of the piece before.
        """
        import torch
        from torch.nn import functional as F

        ids: Tensor = torch.tensor(self.tokenizer(text)["input_ids"], dtype=torch.long, device=self.model.device)
        longest = getattr(self.model.config, "max_position_embeddings", None) or len(ids)
        nll = 0.0
        with torch.inference_mode():
            for start in range(0, len(ids) - 1, max(1, longest - 1)):
                piece = ids[start : start + longest]
                logits = self.model(input_ids=piece[None], use_cache=False).logits[0, :-1]
                nll += float(F.cross_entropy(logits.float(), piece[1:], reduction="none").double().sum())
        return nll, max(0, len(ids) - 1)


@lru_cache(maxsize=1)
def _opened(path: str, device: str) -> _Scorer:
    """The language model of a folder, in float32; kept, because several tasks and all validations score with one."""
    import transformers

    from ttt.audio.weights import weights_digest
    from ttt.io.pretrained import load_settings
    from ttt.model.backbone import load_hf

    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no transformers model here (config.json is missing): {_MEND}")
    model = load_hf(folder).eval()
    try:
        tokenizer = load_settings(transformers.AutoTokenizer, folder)
    except TttError:
        raise
    except Exception as error:  # transformers raises many kinds for damaged folders
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{folder}: the tokenizer cannot be loaded ({reason}): {_MEND}") from error
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise CheckpointError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows}: {_MEND}")
    model_id = f"{model.config.model_type}-{weights_digest(model.state_dict())}"
    return _Scorer(model.to(device), tokenizer, model_id)
