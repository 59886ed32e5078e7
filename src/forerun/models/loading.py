"""From a hub id, a folder or a loaded model to a causal LM that forerun can run, or to an error that says why not."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from forerun.machine import has_matrix_kernels
from forerun.types import ModelLoadError

logger = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent.parent / "data"
BUNDLED_TARGETS = {"forerun/default": BUNDLED / "default" / "target"}
RECOMMENDED_DRAFTERS = {"forerun/default": BUNDLED / "default" / "drafter"}
QUANT_METHODS = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
KNOWN_LAYER_TYPES = {"full_attention", "sliding_attention"}
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def resolve_source(source: str | Path) -> str | Path:
    """A bundled name or a path becomes a folder that exists; anything else is taken for a hub id."""
    if str(source) in BUNDLED_TARGETS:
        return BUNDLED_TARGETS[str(source)]
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    looks_like_path = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1
    if looks_like_path or path.exists():
        raise ModelLoadError(f"model folder {str(source)!r} does not exist or is no folder: give a folder with config.json and *.safetensors, or a hub id")
    return str(source)


def shown_name(source: str | Path) -> str:
    """As users know it: a folder goes by its own name, not by where it happens to lie, a bundled one by its name in the package."""
    bundled = {str(folder): name for names in (BUNDLED_TARGETS, RECOMMENDED_DRAFTERS) for name, folder in names.items()}
    path = Path(source).expanduser()
    return bundled.get(str(source)) or (path.resolve().name if path.is_dir() else str(source))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}): copy the model folder again") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds no JSON object: copy the model folder again")
    return content


def check_folder(folder: Path) -> None:
    """Refuses, before anything is loaded, what would run foreign code or miss its weights."""
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} has no config.json: give the folder of a transformers model")
    refuse_own_code(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise ModelLoadError(f"{folder} holds only pickle weights ({', '.join(pickles[:3])}), which can run code: save the model again with `save_pretrained`, which writes safetensors")
        raise ModelLoadError(f"{folder} has no *.safetensors: copy the model folder again")
    for index in sorted(folder.glob("*.index.json")):
        shards = _read_json(index).get("weight_map")
        named = set(map(str, shards.values())) if isinstance(shards, dict) else set()
        foreign = sorted(name for name in named if not name.endswith(".safetensors") or Path(name).name != name)
        if foreign and index.name.endswith(".safetensors.index.json"):
            raise ModelLoadError(f"{index} names {foreign[0]!r} as weights, which is no safetensors file of this folder: save the model again with `save_pretrained`")


def refuse_own_code(folder: Path) -> None:
    """Refuses a folder whose settings, however deep, ask for classes of its own."""
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith("config.json") and _asks_for_own_code(_read_json(path)):
            raise ModelLoadError(f"{path} has an `auto_map`, which runs code from the model folder: forerun refuses it; use a class of transformers")


def _asks_for_own_code(settings: dict[str, Any]) -> bool:
    level: list[Any] = [settings]
    while level:
        if any(isinstance(each, dict) and each.get("auto_map") is not None for each in level):
            return True
        level = [inner for each in level if isinstance(each, (dict, list)) for inner in (each.values() if isinstance(each, dict) else each)]
    return False


def load_model(source: str | Path, dtype: torch.dtype | None, device: str | torch.device) -> PreTrainedModel:
    """Loads an unmodified transformers class with safetensors weights. Raises ModelLoadError naming the folder and the remedy."""
    found = resolve_source(source)
    if isinstance(found, Path):
        check_folder(found)
    try:
        config = AutoConfig.from_pretrained(found, trust_remote_code=False)
        check_config(config, str(source))
        if dtype is None:
            dtype = _dtype_where_own_is_slow(config, str(source), torch.device(device))
        # the map has each weight read straight onto the device
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            found, config=config, dtype=dtype or "auto", device_map={"": torch.device(device)}, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except ModelLoadError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds; each ends up as one clear line
        first_line = str(error).strip().split("\n")[0]
        raise ModelLoadError(f"model {str(source)!r} cannot be loaded: {type(error).__name__}: {first_line}") from error
    model, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelLoadError(f"model {str(source)!r} lacks weights ({missing}, ...), which would be random: copy the folder again")
    model.eval()
    return model


def _dtype_where_own_is_slow(config: Any, name: str, device: torch.device) -> torch.dtype | None:
    """float32 where the processor has no kernels for the checkpoint's own dtype and would emulate them, ten times slower; else None."""
    own = getattr(config, "dtype", None)
    if device.type != "cpu" or not isinstance(own, torch.dtype) or own == torch.float32 or has_matrix_kernels(own):
        return None
    logger.warning("%s is stored in %s, for which this processor has no kernels: it runs in float32 (dtype=%r asks for the slow ones)", name, own, str(own).removeprefix("torch."))
    return torch.float32


def check_config(config: Any, name: str) -> None:
    """Refuses by name what cannot be rolled back or is not decoder-only."""
    kind = getattr(config, "model_type", type(config).__name__)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    if hasattr(config, "to_dict") and _asks_for_own_code(config.to_dict()):
        raise ModelLoadError(f"{name!r} ({kind}) has an `auto_map`, which runs code from the model's repository: forerun refuses it; use a class of transformers")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(f"{name!r} ({kind}) is an encoder-decoder: forerun runs decoder-only models")
    quantised = getattr(config, "quantization_config", None)
    if isinstance(quantised, dict) and quantised.get("quant_method") not in QUANT_METHODS and not quantised.keys() & {"load_in_4bit", "load_in_8bit"}:
        raise ModelLoadError(f"{name!r} ({kind}) is quantised by {quantised.get('quant_method')!r}, which this transformers does not know and would ignore: update transformers, or give the model as it was before")
    unknown = sorted(set(getattr(text, "layer_types", None) or ()) - KNOWN_LAYER_TYPES)
    if unknown:
        raise ModelLoadError(f"{name!r} ({kind}) has layers of type {', '.join(unknown)}, whose state cannot be rolled back yet: choose a model with attention layers only")


def check_class(model: PreTrainedModel, name: str) -> None:
    """Refuses classes without a pluggable attention, or with state outside the KV cache."""
    check_config(model.config, name)
    kind = type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise ModelLoadError(f"{name!r} ({kind}) keeps a recurrent state, which cannot be rolled back yet: choose a model with attention layers only")
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelLoadError(f"{name!r} ({kind}) does not take its attention from transformers' AttentionInterface: choose a class that does (most since 2024)")
    if model.get_output_embeddings() is None:
        raise ModelLoadError(f"{name!r} ({kind}) has no language-model head: load it with AutoModelForCausalLM")


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules and config anew, over the same weights: what is changed on the copy leaves the user's model alone."""
    tensors = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})
    copied.eval()
    return copied


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the model, or None where the folder has none."""
    found = resolve_source(source)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if isinstance(found, Path) and not any((found / name).exists() for name in names):
        return None
    if isinstance(found, Path):
        refuse_own_code(found)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(found, trust_remote_code=False)
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        raise ModelLoadError(f"the tokenizer of {str(source)!r} cannot be loaded: {type(error).__name__}: {first_line}") from error
    return tokenizer


def weights_size(source: object) -> int:
    """Bytes of the weights in a model's folder; 0 for anything else."""
    folder = Path(source) if isinstance(source, (str, Path)) else None
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else 0


def own_tokenizer(source: str | Path | PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, loaded or not; None where a loaded model comes from no folder, or the folder has none."""
    if not isinstance(source, PreTrainedModel):
        return load_tokenizer(source)
    folder = Path(source.name_or_path or "")
    return load_tokenizer(folder) if source.name_or_path and folder.is_dir() else None


def tokenizer_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """None where both give every token id the same text; else the first difference, in words."""
    left, right = ({i: t for t, i in tokenizer.get_vocab().items()} for tokenizer in (one, other))
    for token_id in sorted(left.keys() | right.keys()):
        if left.get(token_id) != right.get(token_id):
            return f"token {token_id} is {left.get(token_id)!r} in one and {right.get(token_id)!r} in the other"
    return None
