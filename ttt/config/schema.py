"""All settings of a run, as dataclasses.

The type of a field says what it accepts (`ttt.registry.fields`); the comment behind or above it is its documentation.
``ttt config --explain`` prints both, and docs/configuration.md is made from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ttt.interfaces import Device
from ttt.registry import (
    FilledText,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Range,
    Share,
    ShareBelow1,
    checked,
    component,
    components,
    nested,
)

MISSING = "???"
RENAMED_KEYS: dict[str, str] = {}  # "section.old": "section.new" of keys that were renamed or moved; the old ones warn

Attention = Literal["auto", "packed", "sdpa", "eager", "flex_attention"]
Cache = Literal["exact", "block", "dual", "none"]
Form = Literal["interleaved", "roles", "text_then_speech", "text_then_speech_tags", "llada_tts", "llada_tts_audio", "headers"]
LongRows = Literal["drop", "cut", "truncate"]
MixReading = Literal["records", "tokens"]
PromptRule = Literal["labels", "official"]
RatioMode = Literal["tokens", "batches", "legacy_10x"]
Speak = Literal["free", "always", "never"]
Weights = Literal["raw", "ema"]


@checked
@dataclass(frozen=True)
class RunSection:
    """Where a run lives and what it draws from."""

    dir: FilledText = MISSING  # folder of the run: config, checkpoints, logs
    seed: Annotated[int, Range(ge=-(2**63), lt=2**63)] = 1  # every random draw of the run derives from it
    threads: Annotated[int, Range(ge=0, le=1024)] = 0  # CPU threads per process; 0 leaves torch's choice
    device: Device = "auto"  # auto: cuda where torch sees a GPU; cuda:1: the second GPU
    overwrite: bool = False  # start over although the folder holds another run


@checked
@dataclass(frozen=True)
class DataSection:
    """The corpus, its codes, examples, and how they become batches."""

    corpus: FilledText = MISSING  # folder with {split}.jsonl manifests and {split}.items.jsonl
    splits: list[str] = field(default_factory=lambda: ["train", "dev", "test"])  # parts of the corpus, by name
    dir: FilledText = MISSING  # prepared data: codes/, tokenizer/, {split}.jsonl
    # size of the trained text vocabulary before special tokens and codes
    bpe_size: Annotated[int, Range(ge=1, cap=10_000_000)] = 512
    jobs: Annotated[int, Range(ge=1, le=1024)] = 1  # processes that encode audio
    train: FilledText = MISSING  # training data: an examples file, a store ('ttt data pack') or a mix JSON
    # sample_ratio of a mix: share of a source's records that is kept (official), or weights by tokens
    mix: MixReading = "records"
    text: str = ""  # text to train on beside train, which then is the speech; the same forms
    ratio: Share = 0.5  # share of text where data.text names some
    # ratio of tokens, of batches (each of one source), or int(10 x ratio) text batches to one of speech
    ratio_mode: RatioMode = "tokens"
    dev: str = ""  # validation data, like train (generate_items needs an examples file); empty: none
    # of the records of train and dev (not text) only those whose field (or meta field) is one of these: {voice: [a, b]}
    keep: dict[str, Any] = field(default_factory=dict)
    tokenizer: FilledText = MISSING  # folder with tokenizer.json (and vocab.json)
    # 'ttt tokenizer': audio codes to add, where no codec is configured (GLM-4-Voice: 16384); 0: text alone, no audio tokens
    num_codes: Annotated[int, Range(ge=0, cap=10_000_000)] = 16384
    num_codebooks: Annotated[int, Range(ge=1, cap=1024)] = 1  # likewise: codes of a frame
    # 'ttt tokenizer': a token of the backbone's that serves as mask, by its spelling or id (LLaDA-8B: 126336); empty: one is
    # added.  For text alone and for the llada_tts forms
    mask_token: str = ""
    form: Form = "interleaved"  # which tokens are added to the vocabulary, and how chats are written
    pattern: Any = component("pattern", "flatten")  # in which order the codes of several codebooks stand
    codes_of: str = ""  # 'ttt tokenizer' without a codec: name of the codec the codes are of, for vocab.json
    codes_hz: NonNegativeFloat = 0.0  # likewise: frames of a second of speech
    # several documents a row; false: one a row, rows of similar length together (for model.attention=sdpa)
    pack: bool = True
    row_tokens: Annotated[int, Range(ge=1, cap=10_000_000)] = 512  # longest row
    # positions per micro-batch and rank (a whole number of rows when packed); 0: batch_samples decides
    batch_tokens: Annotated[int, Range(ge=0, cap=100_000_000)] = 2048
    # batch_tokens in seconds of sound, by the tokenizer's frame rate; in its place
    batch_s: NonNegativeFloat = 0.0
    # examples per micro-batch and rank, whatever their lengths; 0: as many as batch_tokens hold
    batch_samples: Annotated[int, Range(ge=0, cap=1_000_000)] = 0
    # with pack=false: batches come from this many buckets of like length; 0: from sorted pools
    buckets: NonNegativeInt = 0
    # with pack=false: a row of n tokens counts as n + n^2 / this of batch_tokens; 0: as n
    quadratic_tokens: NonNegativeFloat = 0.0
    quadratic_s: NonNegativeFloat = 0.0  # quadratic_tokens in seconds of sound; in its place
    min_s: NonNegativeFloat = 0.0  # training and validation examples with less sound, in seconds, are left out
    max_s: NonNegativeFloat = 0.0  # likewise those with more; 0: no limit
    max_drop_share: Share = 0.01  # fail when a larger share of examples is longer than a row
    # examples longer than a row; cut: speech at the border of a frame, else dropped; truncate: all end with the row (official)
    long_rows: LongRows = "drop"
    # micro-batches made ahead in a thread; 0: each when it is asked for
    prefetch: Annotated[int, Range(ge=0, le=1024)] = 2
    prompt_rule: PromptRule = "labels"  # what may be noised: targets, or (official) positions >= prompt_length

    @property
    def batch_positions(self) -> int:
        """Positions of a micro-batch at most."""
        return self.batch_samples * self.row_tokens or self.batch_tokens


@checked
@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters on a frozen backbone, with the rows of added tokens trained in full (needs ``model.path``)."""

    rank: NonNegativeInt = 0  # 0: off, all weights are trained; official script: 64
    alpha: PositiveFloat = 16.0  # adapters are scaled by alpha / rank
    dropout: ShareBelow1 = 0.05  # on the input of the adapters
    targets: list[str] = field(  # names of the linear layers that get an adapter
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    quantize: Literal["none", "nf4", "int8"] = "none"  # the frozen weights in 4 bit (QLoRA) or in 8; needs bitsandbytes


@checked
@dataclass(frozen=True)
class ModelSection:
    """The network: which class, and what every class may be told.  Most keys are about Hugging Face causal LMs."""

    arch: Any = component("arch", "causal_lm")  # architecture, with its own fields
    path: str = ""  # local folder with weights (from_pretrained); wins over preset
    preset: str = ""  # name of a shape in ttt.model.backbone.PRESETS: random weights
    overrides: dict[str, Any] = field(default_factory=dict)  # config fields of the preset, e.g. {hidden_size: 128}
    attention: Attention = "auto"  # auto: flex_attention on CUDA, packed elsewhere
    compile: bool = False  # torch.compile everything of a layer but its attention (needs a C++ compiler on CPU)
    # of the weights, in training and in every verb that opens a model; the computation in training is train.autocast's.
    # float16 is for opening trained models only
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # run code that the folder brings along (auto_map in config.json); believed on the command line and in your own recipe only
    trust_remote_code: bool = False
    init: Any = component("initializer", "normal")  # how added token rows start
    gradient_checkpointing: bool = False  # trade time for memory
    lora: LoraSection = nested(LoraSection)  # train adapters instead of all weights
    # text_rows: of embedding and head; body: all but the tables; text_model: both
    freeze: Literal["none", "text_rows", "body", "text_model"] = "none"


@checked
@dataclass(frozen=True)
class TrainSection:
    """The optimiser's side of a run."""

    steps: NonNegativeInt = MISSING  # type: ignore[assignment]  # optimiser updates; 0: epochs decides
    epochs: NonNegativeFloat = 0.0  # length of a run in passes over the data, where steps is not given
    accumulate: PositiveInt = 1  # micro-batches per update and rank
    optimizer: Any = component("optimizer", "adamw")  # with its own fields
    lr: NonNegativeFloat = 2.0e-5  # peak learning rate
    schedule: Any = component("lr_schedule", "cosine")  # after warm-up
    # decay over steps, or over max_seconds (not reproducible bit for bit)
    schedule_by: Literal["steps", "seconds"] = "steps"
    warmup_steps: NonNegativeInt = 0  # linear warm-up
    warmup_epochs: NonNegativeFloat = 0.0  # its length in passes over the data, where warmup_steps is 0
    decay_start: Share = 0.0  # share of the steps (or seconds) after which the decay begins
    min_lr_ratio: Share = 0.0  # least learning rate, as a share of the peak
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.95)  # decay rates of the averages of the gradient and of its square
    # beta1 at the end of the run, reached in a straight line, lr / (1 - beta1) kept; 0: it stays
    final_beta1: ShareBelow1 = 0.0
    eps: NonNegativeFloat = 1.0e-8  # added to the denominator of an update
    # not applied to norms, biases and embeddings' own rows when decay_embeddings is false
    weight_decay: NonNegativeFloat = 0.01
    decay_embeddings: bool = True  # apply weight_decay to the embedding and the head
    clip_norm: NonNegativeFloat = 1.0  # 0: no clipping; scaled_adam clips by a rule of its own instead
    # precision of the computation, where it is not that of the weights; float16 scales losses and skips updates that overflow
    autocast: Literal["none", "bfloat16", "float16"] = "none"
    # local: one process, or data parallelism under torchrun; deepspeed: ZeRO
    engine: Literal["local", "deepspeed"] = "local"
    zero_stage: Literal[0, 1, 2, 3] = 0  # deepspeed; 0: what train.deepspeed says, else 2
    offload: list[Literal["optimizer", "params"]] = field(default_factory=list)  # deepspeed: kept in host memory
    deepspeed: str = ""  # a DeepSpeed JSON of your own; "auto" in it means the recipe's value
    # how long ranks wait for each other before the run gives up
    rank_timeout_s: Annotated[float, Range(gt=0, le=1.0e7)] = 1800.0
    log_every_steps: NonNegativeInt = 10  # losses and speed; 0: never
    eval_every_steps: NonNegativeInt = 0  # validation; 0: only at the end
    # at each validation, answer and score this many dev examples of each task; 0: losses only
    generate_items: NonNegativeInt = 0
    generate_every_steps: NonNegativeInt = 0  # answer them every so many updates and at the end; 0: at each validation
    save_every_steps: NonNegativeInt = 0  # checkpoints; 0: only at the end
    # checkpoints by passes over the data, besides: 1, 0.5, ...; checkpoints/epoch-0.5 links to them; 0: none
    save_every_epochs: NonNegativeFloat = 0.0
    keep_checkpoints: PositiveInt = 2  # the latest ones
    # metric of a validation, e.g. dev/loss: the checkpoint where it was best is kept too, as checkpoints/best; empty: none
    keep_best: str = ""
    keep_best_mode: Literal["min", "max"] = "min"  # is a lower or a higher value of keep_best better
    # decay of a running average of the weights, e.g. 0.999; stored as model_ema/ (eval.weights=ema decodes with it); 0: off
    ema: ShareBelow1 = 0.0
    max_seconds: NonNegativeFloat = 0.0  # finish (then validate and save) after this much time in the loop; 0: no limit
    max_time: str = ""  # the same as D-HH:MM:SS, HH:MM:SS or seconds, as schedulers write it; empty: no limit
    max_tokens: NonNegativeInt = 0  # finish likewise after this many tokens, padding not counted; 0: no limit
    # before the first update: the costliest batch of the epoch, forward and backward (engine local)
    check_memory: bool = False
    resume: bool = True  # go on from the latest complete checkpoint of run.dir
    init_from: str = ""  # start from the weights of this checkpoint
    tensorboard: bool = True  # write run.dir/tensorboard beside metrics.jsonl


@checked
@dataclass(frozen=True)
class EvalSection:
    """How answers are generated and scored."""

    examples: list[str] = field(default_factory=list)  # example JSONL files
    checkpoint: str = ""  # checkpoint or model folder; empty: the latest of run.dir
    weights: Weights = "raw"  # of a checkpoint: the trained ones, or their running average (ema; needs train.ema)
    out: str = ""  # folder for generations and cards; empty: run.dir/eval
    sampler: Any = component("sampler", "blockwise")  # how spans of speech are written
    length: Any = component("length", "until_eoa")  # how long spans of speech may be
    constraint: Any = component("constraint", None)  # what may stand at which place of a span; null: the objective's
    normalizer: Any = component("normalizer", "words")  # what is done to texts before they are compared
    batch_size: PositiveInt = 16  # prompts decoded together
    # bound of memory: rows decoded together, each as long as the longest prompt and max_tokens, hold at most so many
    # tokens; a prompt that is longer by itself is decoded alone; 0: no bound but batch_size
    batch_tokens: NonNegativeInt = 0
    max_tokens: Annotated[int, Range(ge=1, le=1_000_000)] = 512  # new tokens per answer
    strict: bool = True  # restrict the vocabulary by modality and the end token by the span; false: official behaviour
    cache: Cache = "exact"  # keys kept between network calls; block, dual: approximations where blocks look ahead
    temperature: NonNegativeFloat = 0.0  # text; 0: greedy
    top_k: NonNegativeInt = 0  # text, with a temperature; 0: off
    top_p: PositiveShare = 1.0  # text, with a temperature; 1: off
    min_text_tokens_after_audio: NonNegativeInt = 0  # text tokens before the next span of codes may begin
    # text-then-speech forms: speech may (free), must (always) or must not (never) follow the text
    speak: Speak = "free"
    limit: NonNegativeInt = 0  # items per file; 0: all
    bootstrap: Annotated[int, Range(ge=0, cap=10_000_000)] = 1000  # resamples per interval
    samples: NonNegativeInt = 10  # wavs and mel plots written per task
    forced: bool = False  # also run the objective on the true answers, for metrics of its statistics (``forced``)
    # also score the true answers through the codec: what a perfect model would get, as floor_METRIC
    floor: bool = False
    note: str = ""  # printed above every table, e.g. "quick run: small corpus, few steps"


@checked
@dataclass(frozen=True)
class RunConfig:
    """One recipe: every section of every verb."""

    plugins: list[str] = field(default_factory=list)  # plug-in files or modules
    run: RunSection = nested(RunSection)
    data: DataSection = nested(DataSection)
    model: ModelSection = nested(ModelSection)
    objective: Any = component("objective", "ttt")  # the loss: what is noised, the mask, what predicts what
    train: TrainSection = nested(TrainSection)
    eval: EvalSection = nested(EvalSection)
    tasks: Any = components("task", ("asr", "tts", "qa"))  # build the examples, prompt and score them
    codec: Any = component("codec", None)  # between sound and codes
    judge: Any = component("judge", None)  # speech recognizer that hears the answers, for metrics of speech
    speaker: Any = component("speaker", None)  # tells voices apart, for metrics that compare them
