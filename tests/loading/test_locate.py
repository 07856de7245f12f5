"""From what the user calls a model to a directory, or to an error that says what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from dali.errors import DaliError, UsageError
from dali.loading import locate as module
from dali.loading.locate import display_name, gguf_models, locate


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No bundled or cached models, and a hub that nobody may reach."""

    def unreachable(*args: object, **options: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def make(directory):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


def make_checkpoint(directory):
    (make(directory) / "model.safetensors").touch()
    return directory


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands in for the hub: answers with a directory, or raises what it is told to."""

    class Hub:
        answer: object = make_checkpoint(tmp_path / "snapshot")
        asked: dict[str, object]

        def __call__(self, name: str, **options: object) -> str:
            self.asked = {"name": name, **options}
            if isinstance(self.answer, Exception):
                raise self.answer
            return str(self.answer)

    fake = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_a_directory(tmp_path, monkeypatch):
    model = make(tmp_path / "some" / "model")
    assert locate(model) == model
    assert locate(str(model)) == model
    assert str(locate("some/model")) == "some/model"  # not an org/name, once it is there
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/some/model") == model


def test_config_json_alone_makes_no_checkpoint(tmp_path):
    """Who publishes GGUF files often puts the original's config.json beside them."""
    folder = make(tmp_path / "quantized")
    assert locate(folder) == folder  # what it lacks is said by loading
    (folder / "m-Q8_0.gguf").write_bytes(b"GGUF")
    assert locate(folder) == folder / "m-Q8_0.gguf"
    (folder / "m-Q4_0.gguf").write_bytes(b"GGUF")
    assert problem_of(str(folder)) == f"{folder} holds 2 GGUF models."
    (folder / "model-00001-of-00001.safetensors").touch()
    assert locate(folder) == folder


def test_a_directory_whose_name_no_library_takes(tmp_path):
    folder = make(tmp_path / os.fsdecode(b"mod\xe9le"))
    assert "mod\ufffdle is not UTF-8" in problem_of(str(folder))
    (tmp_path / "link").symlink_to(folder)
    assert locate(tmp_path / "link") == tmp_path / "link"


def test_what_people_call_a_model(tmp_path, monkeypatch):
    folder = make(tmp_path / "tiny")
    (folder / "m-Q8_0-00001-of-00002.gguf").touch()
    monkeypatch.chdir(folder)
    assert display_name(folder) == display_name(Path(".")) == display_name(folder / "inner" / "..") == "tiny"
    assert display_name(folder / "m-Q8_0-00001-of-00002.gguf") == "m-Q8_0"
    assert display_name(Path("hub/models--org--big-model/snapshots/0123abcd")) == "org/big-model"


def test_the_bundled_model_and_cached_ones(tmp_path):
    bundled = make(tmp_path / "bundled" / "dali-tiny")
    cached = make(tmp_path / "cache" / "models" / "smollm2-moe")
    assert locate("dali-tiny") == bundled
    assert locate("smollm2-moe") == cached
    (cached / "m-Q8_0.gguf").touch()
    assert (
        locate("smollm2-moe") == cached / "m-Q8_0.gguf"
    )  # config.json alone makes no checkpoint here, either
    (tmp_path / "dali-tiny").mkdir()  # of the user's; the default model is not looked for here
    assert locate(None) == bundled


def problem_of(name: str, **options: object) -> str:
    with pytest.raises(UsageError) as error:
        locate(name, **options)
    assert error.value.fix
    return error.value.problem


def test_a_directory_without_config(tmp_path):
    (tmp_path / "empty").mkdir()
    assert problem_of("empty") == "empty is not a model directory: it has no config.json."


@pytest.mark.parametrize("name", ["model.safetensors", "some/model.bin"])
def test_a_file(tmp_path, name):
    (tmp_path / "some").mkdir()
    (tmp_path / name).write_text("")
    assert problem_of(name) == f"{name} is a file, and not a GGUF one."


def test_a_gguf_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"anything")
    (tmp_path / "sha256-ab").write_bytes(b"GGUF, as Ollama keeps it")
    assert str(locate("model.gguf")) == "model.gguf"
    assert locate(tmp_path / "sha256-ab") == tmp_path / "sha256-ab"


def test_what_is_neither_a_file_nor_a_directory(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    assert problem_of("m.gguf") == "m.gguf is neither a file nor a directory."
    (tmp_path / "gone").symlink_to("nowhere")
    assert problem_of("gone") == "gone is a link to what is not there."
    (tmp_path / "folder.gguf").mkdir()
    assert problem_of(str(tmp_path)) == f"{tmp_path} is not a model directory: it has no config.json."


@pytest.mark.parametrize("asked", ["os.stat", "os.listdir"])
def test_what_may_not_be_looked_into(tmp_path, monkeypatch, asked):
    def refuse(path: object, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    folder = make(tmp_path / "private")
    path = folder if asked == "os.listdir" else folder / "m.gguf"
    monkeypatch.setattr(asked, refuse)
    with pytest.raises(DaliError, match=r"^Cannot read .*private.* \(Permission denied\).\nMake it readable"):
        locate(path)


def test_the_hub_is_asked_in_a_fresh_process(tmp_path):
    """Where nothing else has imported the parts of its library."""
    done = subprocess.run(
        [sys.executable, "-m", "dali", "run", "org/name", "hi there"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert "org/name is not in the local Hugging Face cache, and dali is offline." in done.stderr


@pytest.mark.parametrize("name", ["model.gguf", "org/model.GGUF", "/none/model.gguf"])
def test_a_gguf_file_that_is_not_there(name):
    assert problem_of(name) == f"There is no file {name}."


def test_a_directory_of_many_gguf_files_names_some_and_looks_no_deeper(tmp_path):
    for number in range(10):
        (tmp_path / f"m{number}").mkdir()
        (tmp_path / f"m{number}" / "model.gguf").write_bytes(b"GGUF")
    deep = tmp_path / "m0" / "deeper"
    deep.mkdir()
    (deep / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"10 GGUF models.*\n.*m0/model.gguf, m1/model.gguf.* and 2 more\.$"):
        locate(tmp_path)


def test_a_directory_of_gguf_files(tmp_path):
    for name in ("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-m.gguf"):
        (tmp_path / name).touch()
    assert locate(tmp_path) == tmp_path / "m-Q8_0-00001-of-00002.gguf"
    (tmp_path / "m-Q4_0.gguf").touch()
    with pytest.raises(UsageError, match=r"2 GGUF models.*\n.*m-Q4_0.gguf, m-Q8_0-00001-of-00002.gguf"):
        locate(tmp_path)


REPOSITORY = [
    "README.md",
    "model.Q8_0.gguf",
    "UD/m-UD-Q4_K_M.gguf",
    "m-Q4_K_M.gguf",
    "BF16/m-BF16-00001-of-00002.gguf",
    "BF16/m-BF16-00002-of-00002.gguf",
]


def listing(monkeypatch, files):
    """Stands in for what the hub tells of a repository."""
    siblings = [SimpleNamespace(rfilename=file) for file in files]
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name: SimpleNamespace(siblings=siblings))


@pytest.mark.parametrize(
    ("quant", "files"),
    [
        ("Q8_0", ["model.Q8_0.gguf"]),
        ("q4_k_m", ["m-Q4_K_M.gguf"]),
        ("UD-Q4_K_M", ["UD/m-UD-Q4_K_M.gguf"]),
        ("BF16", ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_a_quantization_after_the_colon(hub, monkeypatch, quant, files, offline):
    if offline:
        for file in REPOSITORY:
            (hub.answer / file).parent.mkdir(exist_ok=True)
            (hub.answer / file).touch()
    else:
        listing(monkeypatch, REPOSITORY)
    assert locate(f"org/name:{quant}", offline) == hub.answer / files[0]
    assert (hub.asked["name"], hub.asked["allow_patterns"]) == ("org/name", files)
    assert hub.asked["local_files_only"] is offline


def test_a_quantization_that_is_cached_needs_no_connection(hub, monkeypatch):
    def unreachable(name):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    (hub.answer / "m-Q4_K_M.gguf").touch()
    assert locate("org/name:Q4_K_M") == hub.answer / "m-Q4_K_M.gguf"
    with pytest.raises(UsageError, match=r"for 'Q8_0' in the local .* cache\.\nIt has Q4_K_M"):
        locate("org/name:Q8_0")
    hub.answer = LocalEntryNotFoundError("not cached")
    with pytest.raises(DaliError, match=r"could not be downloaded \(Name or service not known\)\.\n"):
        locate("org/name:Q4_K_M")


def test_a_quantization_that_is_not_there(hub, monkeypatch):
    listing(monkeypatch, REPOSITORY)
    with pytest.raises(UsageError, match=r"no GGUF file for 'Q2_K' on the.*\nIt has BF16, Q4_K_M, Q8_0"):
        locate("org/name:Q2_K")
    with pytest.raises(UsageError, match="no GGUF file for 'K_M'"):
        locate("org/name:K_M")
    listing(monkeypatch, ["model.safetensors"])
    with pytest.raises(UsageError, match="leave out the colon"):
        locate("org/name:Q8_0")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "nonsense",
            "a/b/c",
            "org/",
            "/name",
            "a b/c",
            "org/name:a:b",
            "https://example.org/org/name",
        ),
        *("/no/such/path", "./none", "../none/x", "~nosuchuser/x/y", "a\0b", "x" * 5000),
        "Why is the sky blue? " * 20,
    ],
)
def test_what_no_model_can_be_called(name):
    assert problem_of(name).startswith(f"No model called {name!r:.100}")


@pytest.mark.parametrize(
    "link",
    [
        "hf.co/org/name",
        "https://huggingface.co/org/name",
        "https://huggingface.co/org/name?library=transformers",
        "https://huggingface.co/org/name/tree/main/",
    ],
)
def test_a_link_to_the_hub_means_what_it_leads_to(hub, link):
    assert locate(link) == hub.answer
    assert hub.asked["name"] == "org/name"


def test_a_link_to_a_gguf_file_means_its_quantization(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_gguf_from_hub", lambda name, quant, offline: tmp_path / name / quant)
    assert locate("hf.co/org/name:Q4_K_M") == tmp_path / "org/name" / "Q4_K_M"
    at = "https://huggingface.co/org/name/blob/main/"
    for file in (
        "name-Q4_K_M.gguf",
        "resolve/main/name-Q4_K_M.gguf?download=true",
        "Q4_K_M/name-Q4_K_M-00001-of-00002.gguf#L1",
    ):
        assert locate(f"{at}{file}") == tmp_path / "org/name" / "name-Q4_K_M"


def test_a_link_to_one_of_two_files_that_end_alike_leads_to_that_one(hub, monkeypatch):
    listing(monkeypatch, REPOSITORY)
    locate("https://huggingface.co/org/name/blob/main/UD/m-UD-Q4_K_M.gguf")
    assert hub.asked["allow_patterns"] == ["UD/m-UD-Q4_K_M.gguf"]


@pytest.mark.parametrize("projector", ["mmproj-BF16.gguf", "mmproj-m-BF16.gguf", "m-mmproj-BF16.gguf"])
def test_what_projects_images_is_no_model(hub, monkeypatch, projector):
    listing(monkeypatch, [*REPOSITORY, projector, "mmproj-F32.gguf"])
    locate("org/name:BF16")
    assert hub.asked["allow_patterns"] == REPOSITORY[-2:]
    with pytest.raises(UsageError, match=r"no GGUF file for 'F32' .*\nIt has BF16, Q4_K_M, Q8_0"):
        locate("org/name:F32")


def test_a_name_with_a_number_that_no_split_model_has_is_a_file_of_its_own(tmp_path):
    for name in ("m-00001-of-00000.gguf", "n-00003-of-00002.gguf"):
        (tmp_path / name).touch()
    assert [file.name for file in gguf_models(tmp_path)] == ["m-00001-of-00000.gguf", "n-00003-of-00002.gguf"]


@pytest.mark.parametrize("name", ["a--b/c", "org/name.git", "-a/b", "模型/名"])
def test_names_the_hub_does_not_take(name, monkeypatch):
    monkeypatch.undo()  # its own validation, before any connection
    assert problem_of(name, offline=True) == f"{name!r} names no model on the Hugging Face hub."


def test_a_model_on_the_hub_is_downloaded_without_its_duplicates(hub):
    assert locate("org/name") == hub.answer
    assert hub.asked["name"] == "org/name"
    assert hub.asked["local_files_only"] is False
    files = ["config.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    files += ["model.safetensors.index.json", "model-00001-of-2.safetensors"]
    others = ["original/model.safetensors", "metal/model.bin", "consolidated.safetensors", "model.bin"]
    patterns = {name: hub.asked[name] for name in ("allow_patterns", "ignore_patterns")}
    chosen = huggingface_hub.utils.filter_repo_objects(files + others, **patterns)
    assert list(chosen) == files


@pytest.mark.parametrize("by_environment", [False, True])
def test_offline(hub, monkeypatch, by_environment):
    """Neither the flag nor the environment lets it touch the network; what is cached is found."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", by_environment)
    assert locate("org/name", offline=not by_environment) == hub.answer
    assert hub.asked["local_files_only"] is True
    hub.answer = LocalEntryNotFoundError("not cached")
    with pytest.raises(DaliError, match=r"org/name is not in the local .*offline\.\nDrop offline"):
        locate("org/name", offline=not by_environment)


def test_offline_for_real(tmp_path, monkeypatch):
    """huggingface_hub itself, with an empty cache: no connection is tried."""
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a connection was tried"))
    with pytest.raises(DaliError, match="dali is offline"):
        locate("org/name", offline=True)


def refused(kind: type[Exception]) -> Exception:
    return kind("refused", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refused(GatedRepoError), r"org/name is gated .*\n.*hf auth login"),
        (refused(RepositoryNotFoundError), r"has no model 'org/name'"),
        (
            LocalEntryNotFoundError("no\nnetwork"),
            r"could not be downloaded \(no network\)\.\nCheck the connection",
        ),
        (OSError(28, "No space left on device"), r"could not be downloaded \(.*No space left"),
        (RuntimeError("the transfer broke"), r"could not be downloaded \(the transfer broke"),
        (ConnectionError(), r"could not be downloaded \(ConnectionError\)"),
        (refused(HfHubHTTPError), r"could not be downloaded \(refused"),
    ],
    ids=["gated", "unknown", "no network", "disk full", "transfer", "silent", "server error"],
)
def test_a_hub_that_does_not_give_it(hub, error, message):
    hub.answer = error
    with pytest.raises(DaliError, match=message):
        locate("org/name")


def test_of_an_unreachable_hub_its_cause_is_told(hub):
    hub.answer = LocalEntryNotFoundError(
        "Got: ConnectError: no name. An error happened while trying to [...]"
    )
    hub.answer.__cause__ = OSError("Name or service not known")
    with pytest.raises(DaliError) as error:
        locate("org/name")
    assert (
        error.value.problem == "org/name is not here and could not be downloaded (Name or service not known)."
    )


def test_an_interrupted_download_found_offline(hub, tmp_path):
    hub.answer = tmp_path / "partial"
    hub.answer.mkdir()
    with pytest.raises(DaliError, match=r"org/name has no config.json here"):
        locate("org/name", offline=True)


def test_a_repository_of_gguf_files_needs_a_quantization(hub, monkeypatch):
    listing(monkeypatch, REPOSITORY)
    (hub.answer / "model.safetensors").unlink()
    with pytest.raises(
        UsageError, match=r"^org/name holds GGUF files.*\n.*org/name:BF16; it has BF16, Q4_K_M, Q8_0"
    ):
        locate("org/name")  # with a config.json and without
    (hub.answer / "config.json").unlink()
    assert problem_of("org/name") == "org/name holds GGUF files, and no safetensors weights."
