"""Decoding: from prompts to answers of text and audio.  What one `Decoder.generate` call passes on:

    Prompt -> DecoderRow -> SpanRequest -> LogitsRequest -> PackedCall -> logits -> Block -> DecodeEvent -> Generation

1. ``decoder/decoder.py`` admits each `Prompt` to a row; text tokens are written there, one at a time.
2. A row that opens an audio span is handed to the sampler as part of a `SpanRequest` (``samplers/request.py``).
3. The sampler yields `LogitsRequest`s; ``decoder/session.py`` packs those of all rows into one `PackedCall` of the model.
4. The sampler gets the logits, and yields a `Block` of final tokens when it has one; the decoder commits it to the session.
5. Final tokens leave as `DecodeEvent`s; `generate` collects them into one `Generation` per prompt.

Which file answers what: when a row writes text or audio: ``decoder/decoder.py``; which token may come next:
``decoder/order.py`` (text) and ``samplers/allowed.py``; what the key-value cache keeps: ``decoder/session.py``; how a block is
denoised: ``samplers/blocks.py``, ``confidence.py``, ``iterative.py``, ``codebooks.py``; how samplers share network calls:
``samplers/steps.py``; sound while the answer is written: ``decoder/stream.py``; what was decided when: ``trace/record.py``.
"""
