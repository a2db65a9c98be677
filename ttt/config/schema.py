"""Everything a run can be told, as dataclasses.  A field's comment is its documentation (``ttt show config``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ttt.registry import component, components, nested

MISSING = "???"
CACHES = ("exact", "block", "none")
RATIO_MODES = ("tokens", "batches", "legacy_10x")
LONG_ROWS = ("drop", "cut")
FREEZES = ("none", "text_rows", "body", "text_model")


@dataclass(frozen=True)
class RunSection:
    """Where a run lives and what it draws from."""

    dir: str = MISSING  # folder of the run: config, checkpoints, logs
    seed: int = 1  # every random draw of the run derives from it
    threads: int = 0  # CPU threads per process; 0 leaves torch's choice
    device: str = "auto"  # auto | cpu | cuda
    overwrite: bool = False  # start over although the folder holds another run


@dataclass(frozen=True)
class DataSection:
    """The corpus, its codes, examples, and how they become batches."""

    corpus: str = MISSING  # folder with {split}.jsonl manifests and {split}.items.jsonl
    splits: list[str] = field(default_factory=lambda: ["train", "dev", "test"])
    dir: str = MISSING  # prepared data: codes/, tokenizer/, {split}.jsonl
    bpe_size: int = 512  # size of the trained text vocabulary before special tokens and codes
    jobs: int = 1  # processes that encode audio
    train: str = MISSING  # training data: an examples file, a store ('ttt data pack') or a mix JSON
    mix: str = "records"  # sample_ratio of a mix: records (share of a source that is kept, official) | tokens (weights)
    text: str = ""  # text to train on beside train, which then is the speech; the same forms
    ratio: float = 0.5  # share of text where data.text names some
    ratio_mode: str = "tokens"  # ... of tokens | of batches (each of one source) | legacy_10x: int(10 x ratio) batches to one
    dev: str = ""  # validation data, like train (generate_items needs an examples file); empty: none
    tokenizer: str = MISSING  # folder with tokenizer.json (and vocab.json)
    num_codes: int = 16384  # 'ttt tokenizer': audio codes to add, where no codec is configured (GLM-4-Voice: 16384)
    form: str = "interleaved"  # tokens added, and template: interleaved | roles | text_then_speech[_tags] | llada_tts[_audio]
    codes_of: str = ""  # 'ttt tokenizer' without a codec: name of the codec the codes are of, for vocab.json
    codes_hz: float = 0.0  # likewise: frames of a second of speech
    pack: bool = (
        True  # several documents a row; false: one a row, rows of similar length together (for model.attention=sdpa)
    )
    row_tokens: int = 512  # longest row
    batch_tokens: int = 2048  # positions per micro-batch and rank (a whole number of rows when packed)
    buckets: int = 0  # with pack=false: batches come from this many buckets of like length; 0: from sorted pools
    quadratic_tokens: float = 0.0  # with pack=false: a row of n tokens counts as n + n^2 / this of batch_tokens; 0: as n
    max_drop_share: float = 0.01  # fail when a larger share of examples is longer than a row
    long_rows: str = "drop"  # examples longer than a row: drop | cut (speech, at the border of a frame; else dropped)
    prefetch: int = 2  # micro-batches made ahead in a thread; 0: each when it is asked for
    prompt_rule: str = "labels"  # what may be noised: labels (targets) | official (position >= prompt_length)

    def __post_init__(self) -> None:
        if self.buckets < 0 or self.quadratic_tokens < 0:
            raise ValueError(f"buckets and quadratic_tokens must be >= 0, got {self.buckets} and {self.quadratic_tokens:g}")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is the share of text and must lie in [0, 1], got {self.ratio}")
        for name, known in (("ratio_mode", RATIO_MODES), ("long_rows", LONG_ROWS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters on a frozen backbone, with the rows of added tokens trained in full (needs ``model.path``)."""

    rank: int = 0  # 0: off, all weights are trained; official script: 64
    alpha: float = 16.0  # adapters are scaled by alpha / rank
    dropout: float = 0.05  # on the input of the adapters
    targets: list[str] = field(  # names of the linear layers that get an adapter
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    quantize: str = "none"  # none | nf4: the frozen weights in 4 bit (QLoRA; needs bitsandbytes)


@dataclass(frozen=True)
class ModelSection:
    """The network: which class, and what every class may be told.  Most keys are about Hugging Face causal LMs."""

    arch: Any = component("arch", "causal_lm")  # architecture: causal_lm | valle, with its own fields
    path: str = ""  # local folder with weights (from_pretrained); wins over preset
    preset: str = ""  # name of a shape in ttt.model.backbone.PRESETS: random weights
    overrides: dict[str, Any] = field(default_factory=dict)  # config fields of the preset, e.g. {hidden_size: 128}
    attention: str = "auto"  # auto (flex_attention on CUDA, packed elsewhere) | packed | sdpa | eager | flex_attention
    compile: bool = False  # torch.compile everything of a layer but its attention (needs a C++ compiler on CPU)
    dtype: str = "float32"  # float32 | bfloat16 (weights; autocast is train.autocast)
    init: Any = component("initializer", "normal")  # how added token rows start
    gradient_checkpointing: bool = False  # trade time for memory
    lora: LoraSection = nested(LoraSection)  # train adapters instead of all weights
    freeze: str = "none"  # none | text_rows (of embedding and head) | body (all but the tables) | text_model (both)

    def __post_init__(self) -> None:
        if self.freeze not in FREEZES:
            raise ValueError(f"freeze must be one of {', '.join(FREEZES)}, got {self.freeze!r}")


@dataclass(frozen=True)
class TrainSection:
    """The optimiser's side of a run."""

    steps: int = MISSING  # type: ignore[assignment]  # optimiser updates
    epochs: float = 0.0  # length of a run in passes over the data, where steps is not given
    accumulate: int = 1  # micro-batches per update and rank
    optimizer: Any = component("optimizer", "adamw")  # adam | adamw | eve | muon | scaled_adam, with its own fields
    lr: float = 2.0e-5  # peak learning rate
    schedule: Any = component("lr_schedule", "cosine")  # after warm-up
    schedule_by: str = "steps"  # steps | seconds: decay over steps, or over max_seconds (not reproducible bit for bit)
    warmup_steps: int = 0  # linear warm-up
    warmup_epochs: float = 0.0  # its length in passes over the data, where warmup_steps is 0
    decay_start: float = 0.0  # share of the steps (or seconds) after which the decay begins
    min_lr_ratio: float = 0.0  # least learning rate, as a share of the peak
    betas: tuple[float, float] = (0.9, 0.95)
    final_beta1: float = 0.0  # beta1 at the end of the run, reached in a straight line, lr / (1 - beta1) kept; 0: it stays
    eps: float = 1.0e-8
    weight_decay: float = 0.01  # not applied to norms, biases and embeddings' own rows when decay_embeddings is false
    decay_embeddings: bool = True
    clip_norm: float = 1.0  # 0: no clipping; scaled_adam clips by a rule of its own instead
    autocast: str = "none"  # none | bfloat16
    engine: str = "local"  # local (one process, or data parallelism under torchrun) | deepspeed (ZeRO)
    zero_stage: int = 0  # deepspeed: 1 | 2 | 3; 0: what train.deepspeed says, else 2
    offload: list[str] = field(default_factory=list)  # deepspeed: optimizer, params: kept in host memory
    deepspeed: str = ""  # a DeepSpeed JSON of your own; "auto" in it means the recipe's value
    rank_timeout_s: float = 1800.0  # how long ranks wait for each other before the run gives up
    log_every_steps: int = 10
    eval_every_steps: int = 0  # validation; 0: only at the end
    generate_items: int = 0  # at each validation, answer and score this many dev examples of each task; 0: losses only
    save_every_steps: int = 0  # 0: only at the end
    keep_checkpoints: int = 2
    max_seconds: float = 0.0  # finish (then validate and save) after this much time in the loop; 0: no limit
    max_time: str = ""  # the same as D-HH:MM:SS, HH:MM:SS or seconds, as schedulers write it; empty: no limit
    max_tokens: int = 0  # finish likewise after this many tokens, padding not counted; 0: no limit
    check_memory: bool = False  # before the first update: the costliest batch of the epoch, forward and backward (engine local)
    resume: bool = True  # go on from the latest complete checkpoint of run.dir
    init_from: str = ""  # start from the weights of this checkpoint
    tensorboard: bool = True  # write run.dir/tensorboard beside metrics.jsonl


@dataclass(frozen=True)
class EvalSection:
    """How answers are generated and scored."""

    examples: list[str] = field(default_factory=list)  # example JSONL files
    checkpoint: str = ""  # checkpoint or model folder; empty: the latest of run.dir
    out: str = ""  # folder for generations and cards; empty: run.dir/eval
    sampler: Any = component("sampler", "blockwise")
    length: Any = component("length", "until_eoa")
    constraint: Any = component("constraint", None)  # what may stand at which place of a span; null: the objective's
    normalizer: Any = component("normalizer", "words")
    batch_size: int = 16  # prompts decoded together
    max_tokens: int = 512  # new tokens per answer
    strict: bool = True  # restrict the vocabulary by modality and the end token by the span; false: official behaviour
    cache: str = "exact"  # keys kept between network calls: exact | block (an approximation where blocks look ahead) | none
    temperature: float = 0.0  # text; 0: greedy
    top_k: int = 0  # text; 0: off
    top_p: float = 1.0  # text; 1: off
    min_text_tokens_after_audio: int = 0
    speak: str = "free"  # text-then-speech forms: speech may (free), must (always) or must not (never) follow the text
    limit: int = 0  # items per file; 0: all
    bootstrap: int = 1000  # resamples per interval
    samples: int = 10  # wavs and mel plots written per task
    forced: bool = False  # also run the objective on the true answers, for metrics of its statistics (``forced``)
    floor: bool = False  # also score the true answers through the codec: what a perfect model would get, as floor_METRIC
    note: str = ""  # printed above every table, e.g. "quick run: small corpus, few steps"

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {self.cache!r}")


@dataclass(frozen=True)
class RunConfig:
    """One recipe: every section of every verb."""

    plugins: list[str] = field(default_factory=list)  # plug-in files or modules
    run: RunSection = field(default_factory=RunSection)
    data: DataSection = field(default_factory=DataSection)
    model: ModelSection = field(default_factory=ModelSection)
    objective: Any = component("objective", "ttt")
    train: TrainSection = field(default_factory=TrainSection)
    eval: EvalSection = field(default_factory=EvalSection)
    tasks: Any = components("task", ("asr", "tts", "qa"))  # build the examples, prompt and score them
    codec: Any = component("codec", None)
    judge: Any = component("judge", None)
    speaker: Any = component("speaker", None)  # tells voices apart, for metrics that compare them
