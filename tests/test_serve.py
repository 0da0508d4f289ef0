"""Serving over HTTP: transformers' own server and chat client, with this package's models and with exported ones."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from chatsft import serve
from chatsft.convert import convert_to_transformers
from chatsft.model.loading import load_model_and_tokenizer
from tests.model.oracle import FIXTURES

BASE = Path(__file__).parent.parent / "recipes" / "quickstart"
QUESTION = "What is 12 * 7?"
TRANSFORMERS = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_server(command: list[str], model: Path, log: Path) -> Iterator[str]:
    """Start a server for a model, wait until it listens, and stop it in the end."""
    port = free_port()
    options = [str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(log, "w") as file:
        server = subprocess.Popen([*command, *options], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def complete(address: str, model: Path, content: str | list) -> dict:
    body = {"model": str(model), "messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0.0, "stream": False}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Copy the base model of the quickstart and make it greedy."""
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(BASE, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"do_sample": False}))
    return folder


@pytest.fixture(scope="module")
def expected(model) -> tuple[str, int]:
    """What generate writes, and the tokens of the prompt."""
    loaded, tokenizer = load_model_and_tokenizer(str(model), dtype=torch.bfloat16)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    written = loaded.eval().generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True), ids.shape[1]


@pytest.mark.slow
def test_a_served_model_answers_as_generate_does_and_the_chat_client_talks_to_it(model, expected, tmp_path):
    parts = [{"type": "text", "text": QUESTION[:8]}, {"type": "text", "text": QUESTION[8:]}]
    with running_server([sys.executable, "-m", "chatsft.serve"], model, tmp_path / "log") as address:
        answer = complete(address, model, QUESTION)
        assert (answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]) == expected
        assert "choices" in complete(address, model, parts)
        client = [*TRANSFORMERS, "chat", str(model), address, "max_new_tokens=6", "do_sample=False"]
        online = {**os.environ, "HF_HUB_OFFLINE": "0"}  # else the client refuses every address
        typed = f"{QUESTION}\nn\n!exit\n"
        chat = subprocess.run(client, input=typed, cwd=tmp_path, env=online, capture_output=True, text=True, timeout=120)
    assert expected[0].strip() in " ".join(chat.stdout.split()), chat.stdout + chat.stderr


@pytest.mark.slow
def test_an_exported_model_is_served_without_this_package(model, expected, tmp_path):
    convert_to_transformers(model, tmp_path / "exported")
    with running_server([*TRANSFORMERS, "serve"], tmp_path / "exported", tmp_path / "log") as address:
        answer = complete(address, tmp_path / "exported", QUESTION)
    assert answer["usage"]["prompt_tokens"] == expected[1]
    assert answer["choices"][0]["message"]["content"] == expected[0]


def test_what_cannot_be_served_is_said_before_the_server_starts(monkeypatch, tmp_path, capsys):
    assert serve.main([str(tmp_path)]) == 2
    assert f"error: {tmp_path} holds no tokenizer" in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text("{}")
    assert serve.main([str(tmp_path)]) == 2
    assert f"error: {tmp_path} is an adapter, which this server does not read." in capsys.readouterr().err
    assert serve.main([str(FIXTURES / "model_v2")]) == 2
    assert "is a nanochat checkpoint, which this server does not read. Convert it first" in capsys.readouterr().err
    monkeypatch.setattr(serve, "is_serve_available", lambda: False)
    assert serve.main([str(BASE)]) == 2
    assert "pip install 'chatsft[serving]'" in capsys.readouterr().err
