"""Weights of codecs: fitted ones in a folder, ``<stem>.safetensors`` beside ``<stem>.json``, which holds the digest of the
former; and published ones given to a network, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.errors import CheckpointError
from ttt.io.atomic import write_bytes, write_json
from ttt.io.digests import digest_of_bytes
from ttt.io.json_input import read_json
from ttt.io.pretrained import refuse_nonfinite

if TYPE_CHECKING:
    from torch import Tensor, nn

# The two forms in which torch stores a weight under weight normalisation: (magnitude, direction).
WEIGHT_NORM = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))


def without_weight_norm(arrays: Mapping[str, Tensor], path: Path, mend: str) -> dict[str, Tensor]:
    """Each pair (g, v) becomes ``weight`` = g v / |v|, the norm over all axes but the first (torch's ``dim=0``); float32.

    Raises `CheckpointError` naming ``path`` and ending with ``mend`` where a magnitude is missing or misshaped.
    """
    plain = {name: value.float() for name, value in arrays.items()}
    for magnitude, direction in WEIGHT_NORM:
        for name in [name for name in plain if name.endswith(direction)]:
            base, v = name.removesuffix(direction), plain.pop(name)
            g = plain.pop(base + magnitude, None)
            if g is None:
                raise CheckpointError(f"{path}: {base}{magnitude} is missing; {mend}")
            if g.shape != (len(v), *[1] * (v.dim() - 1)):
                raise CheckpointError(f"{path}: {base}{magnitude} has shape {list(g.shape)}, not one row per row of {name}; {mend}")
            plain[f"{base}.weight"] = v * (g / v.flatten(1).norm(dim=1).view_as(g))
    return plain


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Eight hex digits that stand for these weights; the same after saving and loading."""
    return digest_of_bytes(_to_bytes(tensors), 4)


def save_weights(folder: str | Path, stem: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write both files, each whole or not at all; other files of the folder stay.

    A crash between the two leaves a digest that does not fit, which `load_weights` refuses.
    """
    content = _to_bytes(tensors)
    write_bytes(Path(folder) / f"{stem}.safetensors", content)
    write_json(Path(folder) / f"{stem}.json", {**info, "weights": digest_of_bytes(content, 4)})


def load_weights(folder: str | Path, stem: str, mend: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and what the JSON says.  Every refusal is a `CheckpointError` naming the folder; ``mend`` says what to do."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not str(folder):
        raise CheckpointError(f"{stem}.path: not set: {mend}")
    folder = Path(folder)
    weights, record = folder / f"{stem}.safetensors", folder / f"{stem}.json"
    for path in (weights, record):
        if not path.is_file():
            raise CheckpointError(f"{folder}: no fitted {stem} here ({path.name} is missing): {mend}")
    info = read_json(record, mend, error=CheckpointError)
    content = weights.read_bytes()
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: {weights.name} is damaged or cut short ({error}): {mend}") from error
    if info.get("weights") != digest_of_bytes(content, 4):
        raise CheckpointError(f"{folder}: {weights.name} and {record.name} do not belong together: {mend}")
    refuse_nonfinite(weights, tensors.items())
    return tensors, info


def give_weights(network: nn.Module, tensors: Mapping[str, Tensor], place: str | Path, mend: str) -> None:
    """Put ``tensors`` in the place of the network's own arrays, which may lie on the meta device.

    Raises `CheckpointError` naming ``place`` and the first array that is missing, has another shape, has no place, or holds NaN.
    """
    wanted = {name: list(value.shape) for name, value in network.state_dict().items()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{place}: {name} is missing; {mend}")
        if list(tensors[name].shape) != shape:
            found = list(tensors[name].shape)
            raise CheckpointError(f"{place}: {name} has shape {found}, the configuration says {shape}; {mend}")
    for name in tensors:
        if name not in wanted:
            raise CheckpointError(f"{place}: {name} is not described by the configuration; {mend}")
    refuse_nonfinite(place, tensors.items())
    network.load_state_dict(tensors, assign=True)


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # cloned: safetensors refuses arrays that share memory (tied weights)
    return save({name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)})
