"""Looking inside a model: attention, samplers side by side, decoding traces, lengths."""
