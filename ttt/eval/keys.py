"""Names of results: a metric key is an interface (``asr/wer``, ``unseen_voice/asr/wer``)."""

from __future__ import annotations


def key_prefix(split: str) -> str:
    """What a split's results begin with: nothing for ``test``.

    >>> [key_prefix(s) for s in ("test", "test_unseen_voice", "dev", "")]
    ['', 'unseen_voice/', 'dev/', '']
    """
    if split in ("test", ""):
        return ""
    return split.removeprefix("test_") + "/"
