"""Is a run healthy?  Checks of its log, of the batches and plans that its code makes, and of its checkpoint.

A log shows that something is wrong, seldom what.  So the usual mistakes are looked for where they happen: every input, target,
weight and mask entry of real batches is compared with the definitions of TtT (arXiv 2509.20072, section 3), and the checkpoint
is asked what it really predicts, sees and has learnt.

`examine`: a run folder -> findings; `finding`: one check's outcome; `log`: laws of training logs; `plans`, `truth`: batches and
plans; `model`: the network; `bands`: losses of healthy runs.
"""
