"""Training data, from files to batches.

    files of other projects --convert--> examples --encode--> token streams --sources--> a source --batches--> `PackedBatch`

An example (`ttt.types.Example`) is a list of turns of text and codes; a token stream (`ttt.types.TokenStream`) is the
same as ids with targets; a source is a sequence of token streams (in memory, in a store on disk, or a mix).

=============================================== ===================================
question                                        open
=============================================== ===================================
How is another corpus turned into examples?     `convert` (one class per format)
What does a corpus of recordings look like?     `manifest` (one utterance a line)
Where may a recording lie?                      `ttt.audio.sound` (file, tar, table)
Which files can be read?                        `read.records`, `read.tables`
What is one example in JSON?                    `read.examples`
What if a record holds token ids already?       `read.token_ids`
How is one file split for evaluation?           `read.train_eval_split`
How does an example become ids and targets?     `encode`
Where does a loader take token streams from?    `sources.streams`
How are sources mixed?                          `sources.mix`
What is in a store on disk, and who writes it?  `sources.store`, `sources.build_store`
Which batch comes at which update?              `batches.loader`
Which examples share a row, or a batch?         `batches.rows`, `batches.by_length`
What if an example is longer than a row?        `batches.long_examples`
When do strategies change an example?           `batches.strategies`
How much of the data is text?                   `batches.text_ratio`
How does a model of codebooks see a batch?      `batches.codec_frames`, `batches.prompt_cut`
How is the next batch made in the background?   `batches.prefetch`
What is wrong with my files?                    `reports.audit`, `reports.overlap`
How long are my examples?                       `reports.lengths`
What does one example look like?                `reports.show`
=============================================== ===================================
"""
