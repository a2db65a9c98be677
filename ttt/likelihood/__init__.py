"""-log p of answers: exact where tokens form a chain, an upper bound where a span is filled in any order.

Text conditioned on its clean history is a chain: -sum log softmax.  A set of ``n`` tokens that a masked network fills in any
order has, averaged over orders, -log p <= E (n / k) sum over masked -log q, with k uniform on 1..n and exactly k of n masked
(TtT, arXiv 2509.20072, section 3.2 and eq. 3; LLaDA, arXiv 2502.09992, eq. 6).  Every span is scored given *clean* history,
whatever the objective trained on.  Letters: ``n`` tokens of a set, ``K`` masked copies of it, ``k`` masked tokens of a copy.

`draws`: which tokens are masked; `factors`: what is a chain and what a set; `scoring`: -log q of positions; `items`: of
whole examples; `summary`: numbers with intervals; `report`: a run's example files, from start to end.
"""

from ttt.likelihood.draws import Draws, Patterns, estimate, every_pattern, patterns, spread_counts
from ttt.likelihood.factors import Factors, Part, factorise
from ttt.likelihood.items import Estimate, ItemLikelihood, likelihoods, uid_number
from ttt.likelihood.scoring import chain_nll, masked_nll
from ttt.likelihood.summary import item_record, summarise, table

__all__ = [
    "Draws",
    "Estimate",
    "Factors",
    "ItemLikelihood",
    "Part",
    "Patterns",
    "chain_nll",
    "estimate",
    "every_pattern",
    "factorise",
    "item_record",
    "likelihoods",
    "masked_nll",
    "patterns",
    "spread_counts",
    "summarise",
    "table",
    "uid_number",
]
