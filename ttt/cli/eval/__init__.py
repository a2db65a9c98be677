"""Run text and pair benchmarks (generated answers: 'ttt score').

Answers to the examples of the run's own tasks are measured by 'ttt generate' and 'ttt score'.
"""

VERBS = ("lm-eval", "mmlu-redux", "pairs", "guard")
