"""What clients find out about the model."""

from __future__ import annotations

import subprocess
import sys

import httpx2

from dali.serve.app import make_app
from dali.serve.options import ServeOptions
from dali.serve.server import Server
from dali.serve.serving import Serving
from served import STORY, served


def test_the_official_client_lists_it(tiny):
    (model,) = tiny.openai.models.list()
    assert model.id == "dali-tiny"
    assert model.meta["n_ctx"] == tiny.llm.ctx_size == 512
    assert model.meta["n_vocab"] == 4096
    assert model.architecture == {"input_modalities": ["text"], "output_modalities": ["text"]}
    assert tiny.openai.models.retrieve("dali-tiny").id == "dali-tiny"
    assert tiny.http.get("/v1/models/other").status_code == 404


def test_props_are_llama_servers(tiny):
    props = tiny.http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["total_slots"] == 4
    assert props["chat_template"] == tiny.llm.tokenizer.chat_template
    assert props["modalities"] == {"vision": False, "audio": False}


def test_it_goes_by_each_of_its_aliases(tiny_llm):
    with served(tiny_llm, alias=("small", "gpt-9")) as named:
        assert [model.id for model in named.openai.models.list()] == ["small"]
        for name in ("small", "gpt-9", "dali-tiny"):
            status, answer = named.post(
                "/v1/chat/completions", {"model": name, "messages": STORY, "max_tokens": 1}
            )
            assert (status, answer["model"]) == (200, "small")


def test_while_the_model_is_loaded_all_say_so():
    options = ServeOptions(port=0)
    server = Server(make_app(Serving(options)), options)
    server.start()
    with httpx2.Client(base_url=server.url) as http:
        for path in ("/health", "/v1/models", "/props"):
            answer = http.get(path)
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == "Loading model"
        assert http.post("/v1/chat/completions", json={"messages": STORY}).status_code == 503
    server.stop()


def test_the_app_needs_no_torch_before_the_model_does():
    code = "import sys, dali.serve.app, dali.serve.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
