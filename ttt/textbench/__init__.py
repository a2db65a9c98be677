"""Text benchmarks: log-likelihoods and answers of a `SpeechTextLM` as lm-evaluation-harness asks for them."""
