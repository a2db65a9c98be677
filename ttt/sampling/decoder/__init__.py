"""From a prompt to an answer: sessions with a key cache, text and audio spans, streaming."""
