"""Networks: made from a configuration, read from a folder, run, saved.

What the rest of the toolkit may ask of one is in `ttt.interfaces` (`Network`, `LanguageModel`); `ttt.api.open_model` opens one.

`arch`: architectures by name.  `folder`: which architecture wrote a model folder, and its weights.
`causal_lm`, `backbone`, `lm`: a Hugging Face causal LM with rows for added tokens; `rows`, `frozen`, `lora`: parts of it that
are not trained; `initializers`: how added rows start; `official`, `merge`, `text_export`: other layouts of a model folder;
`shape`, `facts`: what a model is, without its weights.
`cross_entropy`: losses in chunks of rows.  `packed_attention`: training without padding.
`cache`, `last_layer`, `fast`: decoding calls in less time.  `valle`: the other architecture.
"""
