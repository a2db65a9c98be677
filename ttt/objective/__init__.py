"""Objectives: a batch becomes a plan (which positions predict which tokens), a plan becomes losses.

    library.py       ttt, ar, nar
    dual_stream.py   dual_stream: a clean sample with noisy copies
    valle.py         valle, valle_masked: codebooks of continuations
    pairs.py         source and target positions, normalisers
    places.py        positions inside audio spans, constraints on targets
    padding.py       padding as part of the answer
    losses.py        plan + network -> sums and counts
"""
