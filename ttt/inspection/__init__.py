"""Looking into a trained model: what it attends to, how samplers compare on it, how an answer was decoded.

`attention`, `attention_plots`, `attention_report`: measures, pictures and report of attention; `contenders`, `samplers`,
`sampler_report`: samplers on the same prompts; `replay`, `trace_plot`: a decoding trace; `length_plot`: lengths of data.
"""
