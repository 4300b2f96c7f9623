"""`hf_dir`: a BERT-like model from a local folder, frozen; a prompt is the mean of its last layer's token states.

Local files alone, weights as safetensors alone, no code from the folder. [the only transformers user]
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from shared.base.errors import ConfigError
from shared.clinical.cache import Cache
from shared.clinical.prompted import Prompted
from shared.clinical.settings import TextSettings

VERSION = 1
_READ = (".safetensors", ".json", ".txt", ".model")  # weights, settings, vocabularies


def open_folder(width: int, settings: TextSettings) -> Prompted:
    folder = settings.folder
    if folder is None:
        raise ConfigError("text.folder: missing; hf_dir needs the folder of a local model")
    size = _hidden_size(folder)
    if size != width:
        raise ConfigError(f"text.folder={folder}: its model gives {size} numbers, and the network takes {width}")
    id = f"hf_dir v{VERSION} sha256 {hash_folder(folder)}"
    cache = Cache(settings.state, id) if settings.state is not None else None
    return Prompted(id, width, _Model(folder), cache)


class _Model:
    """The folder's model, loaded when the first prompt is not in the cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: tuple[object, torch.nn.Module] | None = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embed texts one by one: a vector does not depend on what it was asked with."""
        if self._loaded is None:
            self._loaded = _load(self._folder)
        tokenizer, model = self._loaded
        rows = []
        with torch.no_grad():
            for text in texts:
                given = tokenizer(text, return_tensors="pt", truncation=True)  # type: ignore[operator]
                states_1ND = model(**given).last_hidden_state
                mask_1N1 = given["attention_mask"][..., None].bool()
                kept_1ND = torch.where(mask_1N1, states_1ND, 0.0)
                rows.append(kept_1ND.sum(1)[0] / mask_1N1.sum())
        return torch.stack(rows).float()


def _load(folder: Path) -> tuple[object, torch.nn.Module]:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ConfigError("text=hf_dir: needs the package transformers; install lacuna[text]") from None
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        with torch.random.fork_rng(devices=[]):  # layers that the folder has no weights for are drawn, and not used
            model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"text.folder={folder}: can't be loaded ({type(error).__name__})") from None
    return tokenizer, model.eval().requires_grad_(False)


def hash_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of all that the model and its tokenizer are read from."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _READ and path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise ConfigError(f"text.folder={folder}: has no *.safetensors; other weights may hold code, and are not read")
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name}\0{digest}\n".encode())
    return whole.hexdigest()


def _hidden_size(folder: Path) -> int:
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"text.folder={folder}: config.json gives no hidden_size ({type(error).__name__})") from None
