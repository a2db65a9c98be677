"""The families: what an experiment may vary.  ``ttt list`` shows each with its plug-ins."""

from ttt.registry.core import Registry

_I = "ttt.interfaces."

MASK = Registry("mask", "attention mask", _I + "MaskRule", builtin=("ttt.masks.library",))
NOISE = Registry("noise", "noise schedule", _I + "NoiseSchedule", builtin=("ttt.diffusion.schedules",))
WEIGHTING = Registry("weighting", "loss weighting", _I + "LossWeighting", builtin=("ttt.diffusion.weightings",))
RATE = Registry("rate", "masking rate", _I + "MaskingRate", builtin=("ttt.diffusion.rates",))
CONSTRAINT = Registry("constraint", "position constraint", _I + "Constraint", builtin=("ttt.diffusion.constraints",))
PATTERN = Registry("pattern", "code pattern", _I + "CodePattern", builtin=("ttt.text.patterns",))
STRATEGY = Registry("strategy", "training strategy", _I + "Strategy", builtin=("ttt.diffusion.strategies",))
OBJECTIVE = Registry(
    "objective", "objective", _I + "Objective",
    builtin=("ttt.objective.library", "ttt.objective.dual_stream", "ttt.objective.valle", "ttt.objective.preference"),
)  # fmt: skip
ARCH = Registry("arch", "architecture", _I + "Arch", builtin=("ttt.model.arch", "ttt.model.valle.arch"))
INITIALIZER = Registry("initializer", "embedding initializer", _I + "Initializer", builtin=("ttt.model.initializers",))
SAMPLER = Registry(
    "sampler", "sampler", _I + "SpanSampler",
    builtin=("ttt.sampling.samplers.blocks", "ttt.sampling.samplers.confidence", "ttt.sampling.samplers.iterative",
    "ttt.sampling.samplers.codebooks"),
)  # fmt: skip
REMASK = Registry("remask", "remasking rule", _I + "RemaskRule", builtin=("ttt.sampling.samplers.remask",))
LENGTH = Registry("length", "length rule", _I + "LengthRule", builtin=("ttt.sampling.samplers.length",))
CODEC = Registry(
    "codec", "codec", _I + "Codec",
    builtin=("ttt.audio.codecs.toy", "ttt.audio.codecs.precomputed", "ttt.audio.codecs.mel", "ttt.audio.codecs.published",
             "ttt.audio.codecs.snac", "ttt.audio.codecs.units.codec", "ttt.audio.codecs.cosyvoice",
             "ttt.audio.codecs.glm4voice.codec", "ttt.audio.codecs.transformers_codec"),
)  # fmt: skip
TASK = Registry(
    "task", "task", _I + "Task",
    builtin=("ttt.tasks.speech", "ttt.tasks.text", "ttt.tasks.continuation", "ttt.tasks.zero_shot_tts", "ttt.tasks.records"),
)  # fmt: skip
METRIC = Registry(
    "metric", "metric", _I + "Metric", builtin=("ttt.eval.metrics", "ttt.eval.repetition", "ttt.eval.generative_perplexity")
)
JUDGE = Registry("judge", "judge", _I + "Judge", builtin=("ttt.eval.judges",))
SPEAKER = Registry("speaker", "speaker encoder", _I + "SpeakerEncoder", builtin=("ttt.eval.speakers",))
NORMALIZER = Registry("normalizer", "text normalizer", _I + "Normalizer", builtin=("ttt.eval.normalizers",))
OPTIMIZER = Registry("optimizer", "optimizer", _I + "OptimizerSpec", builtin=("ttt.train.optimizers",))
LR_SCHEDULE = Registry("lr_schedule", "learning-rate schedule", _I + "LrSchedule", builtin=("ttt.train.schedules",))
CONVERTER = Registry(
    "converter", "data converter", _I + "Converter",
    builtin=("ttt.data.convert.chats", "ttt.data.convert.spoken", "ttt.data.convert.corpora",
             "ttt.data.convert.sound_folder", "ttt.data.convert.listed", "ttt.data.convert.long_recordings",
             "ttt.data.convert.sound_tables", "ttt.data.convert.archives", "ttt.data.convert.features",
             "ttt.data.convert.llada"),
)  # fmt: skip
