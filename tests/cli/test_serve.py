"""`dali serve`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest

from dali.cli.main import main

CHAT = "/v1/chat/completions"


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_port_in_use_is_told_before_anything_is_loaded(refused, taken):
    code, problem, fix = refused("serve", "--port", str(taken))
    assert (code, problem) == (1, f"Port {taken} of 127.0.0.1 is in use by another program.")
    assert "--port" in fix


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 lets other machines in"),
        (("--port", "70000"), "--port cannot be '70000'"),
        (("--parallel", "0"), "--parallel cannot be '0'"),
        (("--alias", "a,,b"), "--alias cannot be 'a,,b'"),
        (("--api-key", ""), "--api-key cannot be ''"),
        (("dali-tiny", "other"), "takes one MODEL"),
        (("no-such-model", "--port", "0"), "no-such-model"),
    ],
)
def test_what_cannot_be_meant_is_refused(refused, arguments, says):
    code, problem, _ = refused("serve", *arguments)
    assert code in (1, 2)
    assert says in problem


def test_an_address_of_another_machine_is_told(refused):
    code, problem, _ = refused("serve", "--host", "192.0.2.1", "--api-key", "k", "--port", "0")
    assert (code, problem.startswith("The server cannot listen on 192.0.2.1 port 0")) == (1, True)


def test_it_listens_while_it_loads_and_ends_what_it_streams_when_it_is_stopped(cache, taken):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"DALI_CACHE_DIR": str(cache)}
    command = [
        sys.executable,
        "-m",
        "dali",
        "serve",
        "--port",
        str(port),
        "--alias",
        "small",
        "--temp",
        "0",
        "-n",
        "5",
    ]
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
    ):
        seen = set()
        while 200 not in seen:
            try:
                seen.add(http.get("/health").status_code)
            except httpx2.ConnectError:
                assert process.poll() is None
                time.sleep(0.01)
        assert seen == {503, 200}
        once = http.post("/v1/completions", json={"model": "small", "prompt": "Once"}).json()
        assert once["usage"]["completion_tokens"] == 5
        body = {
            "max_tokens": 500,
            "model": "small",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "ignore_eos": True,
        }
        with http.stream("POST", CHAT, json=body) as answer:
            lines = (line for line in answer.iter_lines() if line)
            for _ in range(5):
                next(lines)
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-1] == "data: [DONE]"
        assert process.wait(30) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert f"dali serves small at http://127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_a_signal_that_comes_to_another_thread_stops_it(cache):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended, late = threading.Event(), []

    def stop() -> None:
        while True:
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx2.ConnectError:
                pass
            time.sleep(0.01)
        time.sleep(0.2)  # the main thread waits by now
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        if not ended.wait(5):
            late.append("the main thread never saw it")
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    code = main(["serve", "--port", str(port)])
    ended.set()
    thread.join()
    assert (code, late) == (0, [])
