"""Claude Code and Codex themselves: a session with a tool call and its result.

They run where DALI_AGENTS names the folder of their programs: DIR/node_modules/.bin after
`npm install --prefix DIR @anthropic-ai/claude-code @openai/codex`, and `node install.cjs` in the first one's folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from calling_model import calling_model

# Their prompts are long, and this model's tokens are letters: it reads the last message alone.
SHORT = (
    "{% for m in messages[-1:] %}<|im_start|>{{ m.role }}\n{{ m.content[-200:] }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if messages[-1].role == 'tool' %}<|told|>{% endif %}{% endif %}"
    "{# <tool_call> enable_thinking #}"
)
# The same of a model that was told nothing of tools.
TOOLLESS = (
    SHORT.replace("{% if tools %}{% endif %}", "")
    .replace("messages[-1].role == 'tool'", "'<tool_response>' in messages[-1].content")
    .replace("<tool_call>", "")
)
BASH = ('{"name": "Bash", "argu', 'ments": {"command": "echo hel', 'lo", "description": "Greet"}}')
EXEC = ('{"name": "exec_command", "argu', 'ments": {"cmd": "echo hel', 'lo"}}')


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("DALI_AGENTS", "/nowhere"))
    if found is None:
        pytest.skip(f"{name} is not here: name its folder by DALI_AGENTS.")
    return found


def said(tmp_path, command: list[str], **variables: str) -> str:
    own = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "NO_PROXY": "*"} | variables
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=own,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("template", [SHORT, TOOLLESS], ids=["tools", "no tools"])
def test_claude_code(tmp_path, template):
    command = [program("claude"), "-p", "Greet me by a tool.", "--allowedTools", "Bash(echo:*)"]
    with calling_model(tmp_path / "model", BASH, template, alias=("scripted",)) as server:
        variables = {
            "ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "none", "ANTHROPIC_MODEL": "scripted",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": "scripted", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }  # fmt: skip
        assert said(tmp_path, command, **variables).strip() == "It rains!"


@pytest.mark.parametrize("template", [SHORT, TOOLLESS], ids=["tools", "no tools"])
def test_codex(tmp_path, template):
    with calling_model(tmp_path / "model", EXEC, template, alias=("scripted",)) as server:
        provider = f'model_providers.dali={{name="dali", base_url="{server.url}/v1", wire_api="responses"}}'
        command = [
            program("codex"), "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access",
            "-c", "model_provider=dali", "-c", provider, "-m", "scripted", "Greet me by a tool.",
        ]  # fmt: skip
        assert said(tmp_path, command).strip() == "It rains!"
