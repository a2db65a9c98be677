"""How fast every codec encodes and decodes on one CPU thread, and the memory it needs, at published sizes.

    python benchmarks/codecs.py [--only NAME ...] [--seconds 10] [--out codecs.json]

Weights are random (speed does not depend on them): transformers' default configurations are the published models' sizes.
What is fitted is fitted on a minute of noise.  CPU time of the second of two calls; each codec in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def fitted(name: str, **fields: Any) -> Callable[[Path], Any]:
    """A codec that learns, fitted on noise."""

    def make(folder: Path) -> Any:
        from ttt.check.codecs import prepare
        from ttt.registry.families import CODEC

        return prepare(CODEC.build({"name": name, **fields}, "codec"))

    return make


def published(name: str, config: str, model: str, **sizes: Any) -> Callable[[Path], Any]:
    """A model of transformers with random weights of its default size."""

    def make(folder: Path) -> Any:
        import transformers

        from ttt.registry.families import CODEC

        getattr(transformers, model)(getattr(transformers, config)(**sizes)).save_pretrained(folder)
        return CODEC.build({"name": name, "path": str(folder)}, "codec").load()

    return make


def units(folder: Path) -> Any:
    """HuBERT base, layer 9, 500 centroids, fitted decoder of a few steps."""
    import transformers

    from ttt.check.codecs import prepare
    from ttt.registry.families import CODEC

    transformers.HubertModel(transformers.HubertConfig()).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    fields = {"encoder": str(folder), "layer": 9, "num_codes": 100, "decoder_steps": 3, "normalize": "no"}
    return prepare(CODEC.build({"name": "units", **fields}, "codec"))


def glm4voice(folder: Path) -> Any:
    """Tokenizer and decoder at published size."""
    import torch
    from safetensors.torch import save_file

    from tests.glm4voice_folders import EXTRACTOR, TOKENIZER_CONFIG, random_weights, with_weight_norm
    from ttt.audio.codecs.glm4voice.files import DecoderConfig
    from ttt.audio.codecs.glm4voice.flow import Flow
    from ttt.audio.codecs.glm4voice.hift import Hift
    from ttt.audio.codecs.glm4voice.tokenizer import SpeechTokenizer, TokenizerConfig
    from ttt.registry.families import CODEC

    sizes = {
        "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 32, "pooling_position": 16,
        "quantize_position": 16, "quantize_vocab_size": 16384,
    }  # fmt: skip
    (folder / "tokenizer").mkdir()
    (folder / "decoder").mkdir()
    (folder / "tokenizer/config.json").write_text(json.dumps(TOKENIZER_CONFIG | sizes))
    (folder / "tokenizer/preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
    network = SpeechTokenizer(TokenizerConfig.read(folder / "tokenizer/config.json"))
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "tokenizer/model.safetensors")
    config, draws = DecoderConfig(), torch.Generator().manual_seed(0)
    with torch.device("meta"):
        flow, hift = Flow(config.flow), Hift(config.hift)
    torch.save(random_weights(flow, draws), folder / "decoder/flow.pt")
    weights = random_weights(hift, draws)
    weights["conv_post.bias"] -= 2
    torch.save(with_weight_norm(weights), folder / "decoder/hift.pt")
    (folder / "decoder/config.yaml").write_text("flow: {}\n")
    fields = {"path": str(folder / "tokenizer"), "decoder": str(folder / "decoder")}
    return CODEC.build({"name": "glm4voice", **fields}, "codec").load()


CODECS: dict[str, Callable[[Path], Any]] = {
    "toy": fitted("toy"), "mel_kmeans": fitted("mel_kmeans", num_codes=64), "rvq": fitted("rvq", num_codes=64),
    "encodec": published("encodec", "EncodecConfig", "EncodecModel"), "mimi": published("mimi", "MimiConfig", "MimiModel"),
    "dac": published("dac", "DacConfig", "DacModel"),
    "transformers_codec": published("transformers_codec", "DacConfig", "DacModel"),
    "units": units, "glm4voice": glm4voice,
}  # fmt: skip


def measure(name: str, seconds: float) -> dict[str, Any]:
    """One codec in this process."""
    import torch

    from ttt.check.codecs import noise

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        codec = CODECS[name](Path(folder))
        wave = noise(codec.encode_rate_hz, seconds)
        found: dict[str, Any] = {"codec": name, "frames_per_s": round(codec.frame_rate_hz, 3), "codebooks": codec.num_codebooks}
        codes = codec.encode([wave])
        codec.decode(codes)
        for verb, work in (("encode", lambda: codec.encode([wave])), ("decode", lambda: codec.decode(codes))):
            started = time.process_time()
            work()
            found[verb] = round(seconds / (time.process_time() - started), 2)
    found["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return found


def main() -> int:
    """Measure all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(CODECS), choices=CODECS)
    parser.add_argument("--seconds", type=float, default=10.0, help="of sound (default 10)")
    parser.add_argument("--out", default="")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.seconds)))
        return 0
    rows = []
    print("| codec | frames/s | codebooks | encode | decode | peak GB |\n|---|---|---|---|---|---|")
    for name in arguments.only:
        command = [sys.executable, __file__, "--one", name, "--seconds", str(arguments.seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print("| " + " | ".join(str(v) for v in rows[-1].values()) + " |", flush=True)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
