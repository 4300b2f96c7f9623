"""A language model from a folder: local files alone, no code, the same vectors, its hash in its id."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from support.model.embeddings import WIDTH

from shared.base.errors import ConfigError
from shared.clinical import Chart, Encoder, TextSettings, make_encoder
from shared.clinical.probes import fingerprint, same_encoder

CHART = Chart(diagnosis="MCI", mmse=22, cdrsb=4.5)


def encoder_of(folder: Path, **more: Path) -> Encoder:
    return make_encoder("hf_dir", WIDTH, TextSettings(folder=folder, **more))


def test_a_piece_is_the_mean_of_its_prompts_token_states_on_the_common_scale(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel, AutoTokenizer

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    tokens, held = encoder_of(bert).encode([CHART, Chart()], ["FDG", "T1"], [("T1",), ("FDG", "AV45")])
    assert torch.equal(torch.get_rng_state(), before)
    assert held.tolist() == [[True, True, True, True, False, True], [True, True, False, False, False, False]]
    assert (tokens[~held] == 0).all()
    given = AutoTokenizer.from_pretrained(bert, local_files_only=True)("MMSE=22", return_tensors="pt")
    model = AutoModel.from_pretrained(bert, local_files_only=True)
    states = model.eval()(**given).last_hidden_state[0].mean(0)
    assert torch.allclose(tokens[0, 3], states / states.square().mean().sqrt(), atol=1e-5)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_the_same_folder_gives_the_same_tokens_and_another_is_told_apart(bert: Path, tmp_path: Path) -> None:
    one, again = encoder_of(bert), encoder_of(bert, state=tmp_path)
    assert one.id == again.id
    assert torch.equal(one.encode([CHART], ["T1"], [()])[0], again.encode([CHART], ["T1"], [()])[0])
    assert same_encoder(fingerprint(one), fingerprint(again))
    copy = tmp_path / "copy"
    shutil.copytree(bert, copy)
    (copy / "README.md").write_text("notes")
    assert encoder_of(copy).id == one.id
    words = (copy / "vocab.txt").read_text().splitlines()
    for name in ("vocab.txt", "tokenizer.json"):
        (copy / name).unlink(missing_ok=True)
    (copy / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]) + "\n")
    assert encoder_of(copy).id != one.id
    assert not same_encoder(fingerprint(one), fingerprint(encoder_of(copy)))


def test_weights_that_may_hold_code_are_not_read(bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bert, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no \*.safetensors"):
        encoder_of(copy)


def test_code_in_the_folder_is_not_run(bert: Path, tmp_path: Path) -> None:
    copy, mark = tmp_path / "copy", tmp_path / "was-run"
    shutil.copytree(bert, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with pytest.raises(ConfigError, match="can't be loaded"):
        encoder_of(copy).encode([CHART], ["T1"], [()])
    assert not mark.exists()


def test_a_cached_prompt_needs_no_model(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.clinical import hf_dir

    tokens = encoder_of(bert, state=tmp_path).encode([CHART], ["T1"], [("FDG",)])[0]

    def fail(_: Path) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(hf_dir, "_load", fail)
    assert torch.equal(encoder_of(bert, state=tmp_path).encode([CHART], ["T1"], [("FDG",)])[0], tokens)


def test_wrong_folders_are_named_with_the_rule(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"text.folder: missing"):
        make_encoder("hf_dir", WIDTH)
    with pytest.raises(ConfigError, match=r"config.json gives no hidden_size \(FileNotFoundError\)"):
        encoder_of(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 768}')
    with pytest.raises(ConfigError, match="gives 768 numbers, and the network takes 24"):
        encoder_of(tmp_path)
