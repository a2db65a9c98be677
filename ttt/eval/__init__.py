"""Evaluation: generations in, metrics and cards out.

Which file to open for which question:

    inputs.py            which examples are answered, where results go, what decides a generation (section ``eval``)
    generate.py          examples -> generation records, by the decoder
    generations.py       what a generation record holds; pairing with examples
    partial.py           answers written down one by one while ``ttt generate`` decodes; what a second call goes on from
    evaluate.py          the whole of ``ttt score``: pair_up -> listen -> score -> write
    listen.py            sound of the answers, transcripts of the judge, comparisons of sounds
    score.py             metrics of every group (split, task) with their intervals
    during_training.py   the same for a few examples while a model trains

    metrics.py           most metrics: statistics of an item, score of their sum
    repetition.py        does an answer repeat its words or codes
    generative_perplexity.py   how likely a language model finds the answers
    normalizers.py       how text is normalised before it is compared
    intervals.py         bootstrap intervals and tests
    judges.py            speech recognisers that transcribe answers
    speakers.py          speaker encoders that compare voices
    sound_distance.py    mel distance and speaker similarity
    true_recordings.py   the recordings that examples were made of
    measure_floor.py     the judge's own error on true recordings (``ttt floor``)

    cards.py             result cards and their keys
    sample_files.py      wavs, mel plots, TensorBoard
    report.py            ``ttt report``; report_tables.py, report_page.py (Markdown) and plots.py are its parts
"""
