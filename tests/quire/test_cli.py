"""The ``quire`` command, in this process: what it prints, its exit status, one clean line for a user's error."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from dataclasses import fields

import pytest

from quire import EngineConfig, SamplingParams
from quire.cli import COMMANDS, main, serve
from quire.cli.flags import SAMPLING, docstring_lines
from tests.conftest import ROOT


@pytest.fixture
def model(checkpoint) -> list[str]:
    return ["--model", str(checkpoint), "--num-blocks", "200"]


def test_help_needs_no_torch():
    code = "import sys; from quire.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_every_engine_argument_is_a_flag_with_a_help_text(capsys):
    with pytest.raises(SystemExit) as left:
        main(["generate", "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    for field in fields(EngineConfig):
        assert f"--{field.name.replace('_', '-')}" in text and docstring_lines(EngineConfig)[field.name]
    for name in SAMPLING:
        assert f"--{name.replace('_', '-')}" in text and docstring_lines(SamplingParams)[name]


def test_generate_streams_one_prompt(model, capsys):
    assert main(["generate", "the quick", "--temperature", "0", "--max-tokens", "6", "--ignore-eos", *model]) == 0
    one = capsys.readouterr().out
    arguments = ["generate", "the quick", "one", "--temperature", "0", "--max-tokens", "6", "--ignore-eos", "--json"]
    assert main([*arguments, *model]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["the quick", "one"]
    assert lines[0]["text"] + "\n" == one and lines[0]["tokens"] == 6 and lines[0]["finish_reason"] == "length"


def test_generate_from_a_file_from_standard_input_and_with_several_completions(model, capsys, tmp_path, monkeypatch):
    (tmp_path / "prompts").write_text("the\n\nquick\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    arguments = ["generate", "-", "--file", str(tmp_path / "prompts"), "--n", "2", "--max-tokens", "3", "--chat"]
    assert main([*arguments, *model]) == 0
    text = capsys.readouterr().out
    assert [text.count(f"> {p} [{i}]\n") for p in ("from a pipe", "the", "quick") for i in (0, 1)] == [1] * 6


def test_chat_takes_turns_from_a_pipe(model, capsys, monkeypatch):
    talk = "hello\n\n/system be brief\nhow are you\n/reset\n/help\n/what\n" + "long " * 2000 + "\nagain\n/exit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(talk))
    assert main(["chat", "--max-tokens", "4", "--temperature", "0", "--ignore-eos", *model]) == 0
    streams = capsys.readouterr()
    assert "/system TEXT" in streams.out and "/what is no command" in streams.out
    assert streams.err.startswith("quire: prompt_token_ids=") and streams.err.count("\n") == 1
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))  # the input ends without a command
    assert main(["chat", "--max-tokens", "2", *model]) == 0


def test_chat_remembers_the_conversation(model, capsys, monkeypatch):
    from quire import LLM

    asked = []
    render = LLM.render_chat
    monkeypatch.setattr(
        LLM, "render_chat", lambda self, messages: asked.append(list(messages)) or render(self, messages)
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n/reset\nthree\n/system\nfour\n"))
    assert main(["chat", "--system", "be kind", "--max-tokens", "3", *model]) == 0
    roles = [[m["role"] for m in messages] for messages in asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"], ["user"]]


def test_ctrl_c_at_the_prompt_leaves_and_within_an_answer_ends_the_answer(model, capsys, monkeypatch):
    from quire import LLM

    lines = iter(["hello", "again", KeyboardInterrupt])

    def typed(_prompt=""):
        line = next(lines)
        if line is KeyboardInterrupt:
            raise line
        return line

    step, steps = LLM._step, []

    def interrupted(self, *call):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        step(self, *call)

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(LLM, "_step", interrupted)
    assert main(["chat", "--max-tokens", "6", "--ignore-eos", *model]) == 0
    assert " …\n" in capsys.readouterr().out and len(steps) >= 9


def test_bench_prints_a_table_and_writes_json(model, capsys, tmp_path):
    arguments = [
        "bench",
        "--num-prompts",
        "6",
        "--input-len",
        "4:9",
        "--output-len",
        "5",
        "--json",
        str(tmp_path / "b"),
    ]
    assert main([*arguments, *model]) == 0
    assert "tok/s" in capsys.readouterr().out
    written = json.loads((tmp_path / "b").read_text())
    assert set(written) == {"meta", "rows"} and set(written["meta"]) == {"date", "hardware", "versions", "command"}
    rows = {row["name"]: row for row in written["rows"]}
    assert {"output", "ttft-median", "inter-token-p99", "start"} <= set(rows)
    assert all(row["value"] > 0 and row["unit"] for row in rows.values())


def test_info_does_not_read_the_weights(checkpoint, capsys, tmp_path):
    import shutil

    bare = shutil.copytree(checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert main(["info", str(bare), "--num-blocks", "101", "--max-model-len", "512"]) == 0
    text = capsys.readouterr().out
    for part in ("LlamaForCausalLM", "110,912", "512 B", "1,600 tokens fit", "float32", "weights"):
        assert part in text
    assert main(["info", str(bare), "--num-blocks", "101", "--max-model-len", "512", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 110_912 and facts["kv_bytes_per_token"] == 512 and facts["kv_tokens"] == 1600


def test_demo_shows_sharing(model, capsys):
    assert main(["demo", "--max-tokens", "20", *model]) == 0
    text = capsys.readouterr().out
    assert text.count("?") >= 10 and "What is 417 + 268?" in text
    figures = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if "│" in line}
    assert int(figures["prefix cache hits"].split()[0]) > 100
    assert int(figures["KV blocks saved by sharing, peak"]) > 10
    assert int(figures["blocks copied on write"]) >= 1 and int(figures["sequences running at once, peak"]) >= 8
    assert "tok/s" in figures["output"]


def test_without_a_model_named_pocket_answers(capsys, monkeypatch):
    assert main(["generate", "--chat", "What is 12 + 30?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "12 + 30 = 42\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("My name is Chen.\nWhat is my name?\n"))
    assert main(["chat", "--temperature", "0"]) == 0
    assert "Chen" in capsys.readouterr().out.splitlines()[1]
    assert main(["demo", "--max-tokens", "30"]) == 0
    assert "417 + 268 = 685" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "7,344,384" in capsys.readouterr().out


def test_the_live_view_draws(model, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    assert main(["demo", "--max-tokens", "4", *model]) == 0
    assert "question" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["generate", "x", "--model", "/no/such"], "model='/no/such': no such folder"),
        (["generate", "x", "--top-p", "7"], "top_p=7.0"),
        (["generate"], "no prompt was given"),
        (["generate", "--file", "/no/such"], "--file='/no/such'"),
        (["info", "/no/such"], "no such folder"),
        (["info", "pocket", "--model", "pocket-draft"], "MODEL is 'pocket'"),
        (["generate", "x", "--num-blocks", "1"], "num_blocks=1"),
        (["chat", "--backend", "fast", "--device", "meta"], "backend='fast'"),
        (["generate", "x", "--speculative-config", '{"method": "luck"}'], "speculative_config.method='luck'"),
        (["bench", "--json", "/no/such/file"], "--json='/no/such/file': its folder does not exist"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(arguments, part, checkpoint, capsys):
    if "--model" not in arguments and "info" not in arguments:
        arguments = [*arguments, "--model", str(checkpoint)]
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("quire: ") and streams.err.count("\n") == 1 and part in streams.err
    assert streams.out == ""


def test_wrong_usage_is_one_line_too(capsys):
    for arguments, part in (
        ([], "COMMAND. See quire --help"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["chat", "--n", "2"], "See quire chat --help"),
        (["serve", "--max-seqs", "2"], "unknown argument --max-seqs (did you mean --max-num-seqs?)"),
        (["bench", "pocket"], "unknown argument pocket. See quire bench --help"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        complaint = capsys.readouterr().err
        assert left.value.code == 2 and complaint.count("\n") == 1
        assert complaint.startswith("quire: ") and part in complaint
    for flag, value in (("--input-len", "9:3"), ("--input-len", "x"), ("--num-prompts", "0")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["bench", flag, value])
        assert left.value.code == 2 and f"argument {flag}: give " in capsys.readouterr().err


def test_what_is_a_dict_in_python_is_json_on_the_command_line(model, capsys):
    config = '{"method": "ngram", "prompt_lookup_min": 1, "adaptive": false}'
    assert main(["bench", *model, "--num-prompts", "2", "--output-len", "30", "--speculative-config", config]) == 0
    assert "share of drafts" in capsys.readouterr().out
    for value, problem in (("ngram", "'ngram' is no JSON"), ("[1]", "no object")):
        with pytest.raises(SystemExit):
            main(["bench", "--speculative-config", value])
        assert problem in capsys.readouterr().err


def test_help_tells_the_defaults_that_hold(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "leaves [256]" in text and "generation_config.json" in text


def test_equal_completions_are_explained(model, capsys):
    assert main(["generate", "the", "--n", "2", "--temperature", "0", "--max-tokens", "2", *model]) == 0
    assert "all completions are the same" in capsys.readouterr().err


def test_serve_asks_for_every_package_that_the_server_imports():
    imported = set()
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.partition(".")[0] for name in names}
    imported -= {*sys.stdlib_module_names, "quire", "numpy", "pydantic", "pydantic_core", "starlette"}
    assert {"fastapi", "zmq"} <= imported <= {*serve.NEEDED}
