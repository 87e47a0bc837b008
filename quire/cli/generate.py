"""``quire generate PROMPT…``: complete prompts, one stream for a single one, all at once for several."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from quire.cli.flags import add_engine_flags, add_sampling_flags, engine_args, sampling_args
from quire.reference.control.errors import RequestError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="a prompt; - reads one from standard input")
    parser.add_argument("--file", type=Path, help="file of prompts, one per line")
    parser.add_argument("--chat", action="store_true", help="put each prompt through the model's chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object per completion")
    add_sampling_flags(parser)
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    prompts = _prompts(arguments)
    from quire import LLM
    from quire.cli.settings import default_params

    with LLM(**engine_args(arguments)) as llm:
        params = default_params(llm, sampling_args(arguments))
        asked = [llm.render_chat([{"role": "user", "content": p}]) if arguments.chat else p for p in prompts]
        if len(asked) == 1 and params.num_sequences == 1 and not arguments.json:
            for output in llm.stream(asked, params):
                print(output.outputs[0].text, end="", flush=True)
            print()
            return 0
        if params.n > 1 and params.greedy:
            print("quire: temperature is 0, so all completions are the same; try --temperature 0.8", file=sys.stderr)
        for prompt, output in zip(prompts, llm.generate(asked, params)):
            for completion in output.outputs:
                if arguments.json:
                    line = {"prompt": prompt, "index": completion.index, "text": completion.text}
                    line |= {"tokens": len(completion.token_ids), "finish_reason": completion.finish_reason}
                    print(json.dumps(line, ensure_ascii=False))
                else:
                    number = f" [{completion.index}]" if len(output.outputs) > 1 else ""
                    print(f"> {prompt}{number}\n{completion.text}\n")
    return 0


def _prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = [sys.stdin.read() if p == "-" else p for p in arguments.prompts]
    if arguments.file is not None:
        try:
            lines = arguments.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(
                "--file", str(arguments.file), f"cannot be read ({error})", "Name a text file with one prompt per line"
            ) from None
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise RequestError("PROMPT", "", "no prompt was given", "Give one or more, or --file")
    return prompts
