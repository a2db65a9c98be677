"""Part of the task `tiny_half`: the first twenty documents."""


def first(documents):
    return documents.select(range(20))
