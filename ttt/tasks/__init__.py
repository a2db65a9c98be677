"""Tasks: how a corpus item becomes an example, what the prompt is, which metrics are reported.

    base.py           what a task author imports: `ChatTask`, `codes_of`, `text_of`, metric lists; with a complete example
    speech.py         asr, tts, qa: recognition, synthesis, spoken questions
    text.py           text_qa, text_then_speech: written questions
    continuation.py   continuation: the rest of a recording, without text
    zero_shot_tts.py  zero_shot_tts: text in the voice of a recording (VALL-E)
    records.py        chat, document: records that bring their own answers, as published
    prepare.py        codes, tokenizer and examples of a whole corpus (``ttt tokenize``, ``ttt examples``)
"""
