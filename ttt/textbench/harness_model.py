"""`TextScorer` as a model of lm-evaluation-harness.  Imports the harness; import this module late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

from ttt.textbench.scorer import TextScorer

Load = Callable[..., TextScorer]


class HarnessModel(LM):
    """What the harness calls: requests in, numbers and strings out.  ``scorer`` does the work."""

    def __init__(self, scorer: TextScorer) -> None:
        super().__init__()
        self.scorer = scorer
        self._device = scorer.model.device

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p of the continuation, is it what greedy decoding writes?) of every request."""
        found = [(s.logprob, s.greedy) for s in self.scorer.loglikelihood([r.args for r in requests])]
        return self._told("loglikelihood", requests, found)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts."""
        return self._told("loglikelihood_rolling", requests, self.scorer.rolling([r.args[0] for r in requests]))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to their stop strings."""
        return self._told("generate_until", requests, self.scorer.generate([r.args for r in requests]))

    def _told(self, kind: str, requests: Sequence[Any], found: list[Any]) -> list[Any]:
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the model's own template writes it."""
        return self.scorer.chat(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's name: it is code, not Jinja."""
        return f"ttt:{self.scorer.settings.template}" if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """What cached requests are kept apart by."""
        return f"ttt-{self.scorer.settings.template}-{self.scorer.tokenizer.vocab.digest}"

    @property
    def max_length(self) -> int:
        """Longest row the network reads."""
        return self.scorer.max_length


def model_class(load: Load) -> type[HarnessModel]:
    """The class that the harness makes from its ``--model_args``; ``load`` turns them into a `TextScorer`."""

    class Ttt(HarnessModel):
        """A checkpoint of this toolkit; arguments: see ``docs/benchmarks_text.md``."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(load(**arguments))

    return Ttt


def register(load: Load, names: Sequence[str] = ("ttt", "unitlm")) -> type[HarnessModel]:
    """Make the model known to the harness of this process."""
    from lm_eval.api.registry import model_registry, register_model

    made = model_class(load)
    missing = [name for name in names if name not in model_registry]
    return register_model(*missing)(made) if missing else made


def request(kind: str, *arguments: Any) -> Any:
    """A request as the harness makes them, for tests and scripts."""
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
