"""Where a flag's value comes from, and how a bad one is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from dali.cli import simulate, verbs
from dali.cli.main import main
from dali.cli.run import VERB, Settings
from dali.engine.sampling import FALLBACK, SamplingParams
from dali.errors import UsageError
from dali.loading.locate import DEFAULT_MODEL
from dali.options import QUANTS
from dali.policies import registry

OPTIONS = {option.name: option for option in VERB.options}


def read(*arguments: str) -> Settings:
    return VERB.settings(arguments)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "dali.yaml"


def test_nothing_given_is_nothing_set() -> None:
    settings = vars(read())
    assert settings.pop("words") == []
    assert settings.pop("origins") == {}
    assert settings.pop("stop") == ()
    assert {name for name, value in settings.items() if value is False} == {
        "raw",
        "offline",
        "verbose",
        "cpu_moe",
        "lossy",
        "list_devices",
        "list_policies",
    }
    assert {value for value in settings.values() if value is not False} == {None}


def test_flag_beats_environment_beats_config_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("temp: 0.1\ntop-k: 1\nmin_p: 0.25\n")
    monkeypatch.setenv("DALI_TEMP", "0.2")
    monkeypatch.setenv("DALI_TOP_K", "2")
    settings = read("--config", str(config), "--temp", "0.3")
    assert (settings.temp, settings.top_k, settings.min_p, settings.top_p) == (0.3, 2, 0.25, None)


def test_the_config_file_may_come_from_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("seed: 7\n")
    monkeypatch.setenv("DALI_CONFIG", str(config))
    assert read().seed == 7


def test_the_folder_of_prompts_is_not_dalis_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALI_CACHE_DIR", "/own")
    assert read().cache_dir is None
    monkeypatch.setenv("DALI_PREFIX_DIR", "/prompts")
    monkeypatch.setenv("DALI_CACHE_RAM", "1GiB")
    options = read("--cache-disk", "2GiB").load_options()
    assert (options.cache_dir, options.cache_ram, options.cache_disk) == ("/prompts", 2**30, 2**31)
    assert read("--cache-dir", "/others").cache_dir == "/others"


def test_drafts_are_asked_for_by_the_names_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read().load_options().draft is None
    assert read("--draft", "ngram").load_options().draft == "ngram"
    with pytest.raises(UsageError, match="ngram"):
        read("--draft", "lookup")


def test_an_empty_variable_is_none(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("temp: 0.5\nseed:\n")
    monkeypatch.setenv("DALI_TEMP", "")
    settings = read("--config", str(config))
    assert (settings.temp, settings.seed) == (0.5, None)


def test_values_have_the_type_they_mean(config: Path) -> None:
    config.write_text("stop: [a, '2']\nraw: yes\nquant: w4\npredict: 5\nthreads: 2\n")
    settings = read("--config", str(config), "--ram", "8GiB", "-c", "0", "--seed", "-1")
    assert (settings.stop, settings.raw, settings.quant) == (("a", "2"), True, "w4")
    assert (settings.predict, settings.threads, settings.ram) == (5, 2, 8 * 2**30)
    assert (settings.ctx_size, settings.seed) == (None, None)  # llama.cpp's way to say so


def test_the_last_of_a_flag_counts_and_a_repeatable_one_adds_up() -> None:
    settings = read("--temp", "1", "--stop", "a", "--temp", "2", "--stop", "b")
    assert (settings.temp, settings.stop) == (2.0, ("a", "b"))


def test_a_variable_turns_off_what_the_file_turns_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("offline: true\n")
    monkeypatch.setenv("DALI_OFFLINE", "0")
    assert read("--config", str(config)).offline is False


def test_flags_may_stand_between_words_and_words_may_look_like_flags() -> None:
    assert read("model", "--temp", "1", "prompt").words == ["model", "prompt"]
    assert read("--temp", "1", "model", "--", "--prompt").words == ["model", "--prompt"]


BAD = [
    ("temp", "hot"),
    ("temp", "-1"),
    ("temp", "nan"),
    ("temp", "inf"),
    ("top-p", "1.5"),
    ("top-k", "2.5"),
    ("predict", "0"),
    ("threads", "0"),
    ("quant", "q5"),
    ("quant", "q8"),
    ("dtype", "int8"),
    ("ram", "3 parsecs"),
    ("log-level", "loud"),
    ("device", "gpu"),
    ("device", "sim:cray"),
    ("profile", "cray"),
    ("assign", "best"),
    ("prefetch", "lru"),
    ("cache", "ridge"),
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_is_refused_with_its_origin(
    name: str, text: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(f"{name}: {text}\n")
    with pytest.raises(UsageError) as from_file:
        read("--config", str(config))
    with pytest.raises(UsageError) as from_flag:
        read(f"--{name}", text)
    variable = "DALI_" + name.replace("-", "_").upper()
    monkeypatch.setenv(variable, text)
    with pytest.raises(UsageError) as from_environment:
        read()
    assert from_flag.value.problem == f"--{name} cannot be {text!r}."
    assert from_environment.value.problem == f"{variable} cannot be {text!r}."
    assert from_file.value.problem == f"{name} in {config} cannot be {text!r}."
    fixes = {error.value.fix for error in (from_flag, from_environment, from_file)}
    near = OPTIONS[name].kind.near.get(text)
    assert fixes == {f"Did you mean {near}? " * bool(near) + f"Give {OPTIONS[name].kind.expected}."}


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as error:
        read("--quant", "q4")
    assert all(name in error.value.fix for name in QUANTS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("temprature: 1", "Unknown flag 'temprature' in "),
        ("config: other.yaml", "Unknown flag 'config' in "),
        ("temp: [1, 2]", "temp in "),
        ("stop: {a: b}", "stop in "),
        ("- temp", "Cannot read the config file "),
        ("temp: 'x", "Cannot read the config file "),
    ],
)
def test_a_bad_config_file_is_refused(text: str, problem: str, config: Path) -> None:
    config.write_text(text)
    with pytest.raises(UsageError) as error:
        read("--config", str(config))
    assert error.value.problem.startswith(problem)
    assert str(config) in error.value.problem


def test_a_config_file_may_hold_the_flags_of_other_verbs(config: Path) -> None:
    config.write_text("json: true\ntemp: 1\n")
    settings = read("--config", str(config))
    assert settings.temp == 1
    assert not hasattr(settings, "json")


@pytest.mark.parametrize("content", [None, b"temp: \xff"])
def test_an_unreadable_config_file_is_refused(content: bytes | None, config: Path) -> None:
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(UsageError, match="Cannot read the config file"):
        read("--config", str(config))


def test_flags_are_refused_and_help_is_shown_without_torch() -> None:
    for arguments in (["--assign", "best"], ["--device", "sim:cray"], ["--help"]):
        program = (
            "import sys\nfrom dali.cli.main import main\n"
            f"try:\n    main({['run', *arguments]!r})\nexcept SystemExit:\n    pass\n"
            "assert not {'torch', 'transformers'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_names_written_out_are_the_engines() -> None:

    for name, flag in {"temperature": "temp", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p"}.items():
        assert f"or else {FALLBACK[name]})" in OPTIONS[flag].help


def test_llama_cpps_flags_for_model_and_prompt(run):
    code, _, err = run("run", "-m", "model.gguf", "-p", "hi")
    assert code == 2
    assert "Model and prompt come without a flag: `dali run model.gguf hello`." in err


@pytest.mark.parametrize("kind", ["assign", "prefetch", "cache"])
def test_help_names_the_policies_that_an_error_names(kind):
    option = OPTIONS[kind]
    names = option.kind.expected.removeprefix("one of ")
    assert names == ", ".join(registry.names(kind))
    assert option.help.endswith(f": {names} (default: {registry.DEFAULT[kind]})")


def test_llama_cpps_number_of_layers_is_no_number_of_tokens(refused):
    assert refused("run", "hi there", "-ngl", "99")[1].startswith("There is no -ngl")


@pytest.mark.parametrize("verb", ["list", "simulate"])
@pytest.mark.parametrize("given", [["--device", "sim:paper"], ["--device=sim:paper"]])
def test_verbs_without_an_accelerator_say_so(refused, verb, given):
    code, problem, fix = refused(verb, *given)
    assert code == 2
    assert problem.startswith(f"Unrecognized arguments: {given[0]}")
    assert fix.startswith("`dali run`, `serve`, `bench` and `trace` take one;")


def test_the_sampling_defaults_that_help_names_are_the_engines():
    for name, value in FALLBACK.items():
        option = OPTIONS["temp" if name == "temperature" else name.replace("_", "-")]
        assert option.help.endswith(f"(default: the model's, or else {value})")


@pytest.mark.parametrize("name", ["system", "policy"])
def test_a_system_goes_by_either_name(name: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(f"--{name}", "hobbit").system == "hobbit"
    with pytest.raises(UsageError, match=f"^--{name} cannot be 'best'."):
        read(f"--{name}", "best")
    config.write_text(f"{name}: lru\n")
    assert read("--config", str(config)).system == "lru"
    monkeypatch.setenv(f"DALI_{name.upper()}", "hobbit")
    assert read("--config", str(config)).system == "hobbit"


def test_the_better_name_wins_in_one_place_and_the_last_on_the_command_line(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("system: lru\npolicy: hobbit\n")
    assert read("--config", str(config)).system == "lru"
    config.write_text("policy: hobbit\nsystem: lru\n")
    assert read("--config", str(config)).system == "lru"
    monkeypatch.setenv("DALI_POLICY", "lru")
    monkeypatch.setenv("DALI_SYSTEM", "hobbit")
    assert read().system == "hobbit"
    assert read("--system", "daop", "--policy", "fiddler").system == "fiddler"


def test_a_config_file_serves_verbs_that_mean_different_things_by_a_name(config: Path) -> None:
    config.write_text("policy: lru\nseed: 3\njson: rows.json\n")
    settings = simulate.VERB.settings(["t.npz", "--config", str(config)])
    assert (settings.policy, settings.seed, settings.json) == (("lru",), 3, "rows.json")
    assert (read("--config", str(config)).system, read("--config", str(config)).seed) == ("lru", 3)


def test_no_variable_means_two_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is set for a server must not change what another verb does without a word."""
    kinds: dict[str, set[str]] = {}
    for verb in verbs.VERBS:
        for option in verbs.module(verb).VERB.options:
            for variable in option.variables:
                kinds.setdefault(variable, set()).add(option.kind.metavar)
    assert {variable: kind for variable, kind in kinds.items() if len(kind) > 1} == {}
    monkeypatch.setenv("DALI_RAM", "8GiB")
    monkeypatch.setenv("DALI_SIMULATE_POLICY", "lru,lfu")
    assert (read().ram, read().system) == (8 * 2**30, None)
    settings = simulate.VERB.settings(["t.npz"])
    assert (settings.ram, settings.policy) == (None, ("lru", "lfu"))


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_flag_of_a_verb_is_shown_under_one_of_its_headings(verb, capsys) -> None:
    known = verbs.module(verb).VERB
    assert {option.heading for option in known.options} == {*known.headings, "other"}
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert all(
        (f"--{name}" in shown) is not option.is_word for option in known.options for name in option.names
    )


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        read().temp = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("max-tokens", "predict"),
        ("max_new_tokens=5", "predict"),
        ("temperature", "temp"),
        ("temprature", "temp"),
        ("repetition_penalty", "repeat-penalty"),
        ("num-ctx", "ctx-size"),
        ("presence-penality", "presence-penalty"),
    ],
)
def test_a_flag_that_was_meant_is_named(refused, config, given, meant):
    code, problem, fix = refused("run", "hi there", f"--{given}", *["5"] * ("=" not in given))
    assert code == 2
    assert problem.startswith(f"Unrecognized arguments: --{given}")
    assert fix.startswith(f"Did you mean --{meant}? ")
    name = given.partition("=")[0]
    config.write_text(f"{name}: 5")
    with pytest.raises(UsageError) as error:
        read("--config", str(config))
    assert error.value.problem.startswith(f"Unknown flag {name!r}")
    assert error.value.fix.startswith(f"Did you mean {meant}? Known flags: ")


def test_a_flag_that_resembles_none_is_left_at_that(refused):
    assert refused("run", "--frobnicate")[2] == "See `dali run --help`."


def test_the_default_model_stands_in_the_environment_or_a_file(config, monkeypatch, refused) -> None:
    config.write_text("model: org/from-file\n")
    monkeypatch.setenv("DALI_CONFIG", str(config))
    assert read().model == "org/from-file"
    monkeypatch.setenv("DALI_MODEL", "./no-such")
    assert read().model == "./no-such"
    monkeypatch.delenv("DALI_CONFIG")
    for line in (["run", "hi there"], ["bench"], ["trace", "-o", "t.npz"]):
        assert refused(*line)[1].startswith("No model called './no-such'")
    assert refused("run", "./other", "hi")[1].startswith("No model called './other'")
    assert "`dali run ./no-such hello`" in refused("run", "hello")[2]
    monkeypatch.setenv("DALI_MODEL", "nothing")
    assert "question" not in refused("run", "hi there")[2]
    assert f"`dali run {DEFAULT_MODEL} nothing`" in refused("run", "nothing")[2]
    assert refused("run", "hi there", "--model", "x")[2].startswith("Model and prompt come without a flag")


def test_penalties_and_variables_reach_the_sampler_and_the_template() -> None:
    flags = "--repeat-penalty 1.1 --repeat-last-n -1 --presence-penalty -0.5 --frequency-penalty 0.25"
    settings = read(*flags.split(), "--stop", "a", "--chat-template-kwargs", '{"enable_thinking": false}')
    assert settings.sampling() == {
        "max_tokens": None,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "seed": None,
        "stop": ("a",),
    }
    assert settings.chat_template_kwargs == {"enable_thinking": False}
    for name in settings.sampling():
        assert name in {field.name for field in fields(SamplingParams)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chat-template-kwargs", "{x"),
        ("chat-template-kwargs", "[1]"),
        ("repeat-penalty", "0"),
        ("presence-penalty", "nan"),
        ("system-prompt", "\udcff"),
        ("stop", "\udcff"),
    ],
)
def test_what_a_flag_cannot_be_is_blamed_on_it(name, text) -> None:
    with pytest.raises(UsageError) as error:
        read(f"--{name}", text)
    assert error.value.problem == f"--{name} cannot be {text!r}."


def test_files_may_have_names_that_are_no_utf8() -> None:
    assert read("--config", "/dev/null", "--log-level", "info").config == "/dev/null"
    with pytest.raises(UsageError, match="Cannot read the config file"):
        read("--config", "\udcff")
