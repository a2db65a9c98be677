"""Text benchmarks of a trained model, and what training cost its text (answers of the run's own tasks: see score)."""

VERBS = ("lm-eval", "mmlu-redux", "guard")
