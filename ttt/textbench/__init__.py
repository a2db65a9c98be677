"""Text benchmarks of a trained model: lm-evaluation-harness, MMLU-Redux, and what training cost the text (guard).

`scorer`: what a benchmark may ask a model; `chain`, `bound`: log-likelihoods of models that read left to right, or in any
order; `writing`: generated answers; `texts`: text -> tokens; `mmlu_redux`, `guard`: those two benchmarks; `harness*`: the
harness; `opening`: from a folder to a scorer; `benchmarks`: a whole evaluation, to its result card.
"""
