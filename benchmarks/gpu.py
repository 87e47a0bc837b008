"""The fast data plane on a GPU, end to end: throughput, one request, first token, start. With vLLM in the same run.

    python -m benchmarks.gpu [--models qwen3-0.6b,…] [--sections A,E,…] [--vllm SITE] [--hf] [--json PATH]

Three shapes with random weights in bfloat16; prompts are token ids, and every request runs to its full length.

    A/…      output tokens per second, nano-vllm's workload: 256 requests, 100–1,024 tokens in and out, temperature 0.6
    E/…      output tokens per second, 1,024 requests of 128 tokens in and 128 out, greedy
    one/…    milliseconds per token of a single request (32 in, 512 out, greedy)
    ttft/…   milliseconds to the first token of a prompt of 2,048 tokens
    start/…  seconds from the start of Python to the first token: kernel cache empty (-cold), and not (-warm)
    A-invariant/…  A with batch_invariant=True (section "invariant"); its ratio to A is what that costs
    kernel/…  the kernels one by one (section "kernel"), see ``benchmarks.kernels``

``floor`` is the time that reading weights and K/V takes at the bandwidth measured here (a sum over 4 GB), plus prompts
at the rate of a large matrix product. Each engine runs in processes of its own. ``--vllm`` names a folder that has vLLM
in it: the same code drives it, since the two have the same face. ``--hf`` measures Hugging Face transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

BEGAN = time.time()
SECTIONS = ("A", "E", "one", "ttft", "start", "invariant", "kernel")
COMMON = {"torch_dtype": "bfloat16", "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "hidden_act": "silu"}


def shape(
    architecture: str, hidden: int, layers: int, heads: int, head_dim: int, ffn: int, **more: Any
) -> dict[str, Any]:
    return COMMON | {
        "architectures": [f"{architecture}ForCausalLM"], "model_type": architecture.lower(), "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": head_dim,
        "intermediate_size": ffn, "bos_token_id": 1, "eos_token_id": 2, **more,
    }  # fmt: skip


MODELS = {
    "qwen3-0.6b": shape(
        "Qwen3", 1024, 28, 16, 128, 3072, vocab_size=151936, max_position_embeddings=40960, rope_theta=1e6
    ),
    "llama-3.2-1b": shape(
        "Llama", 2048, 16, 32, 64, 8192, vocab_size=128256, max_position_embeddings=131072, rope_theta=5e5
    ),
    "llama-3-8b": shape(
        "Llama", 4096, 32, 32, 128, 14336, vocab_size=128256, max_position_embeddings=8192, rope_theta=5e5,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------- in the engine's own process


def nano_workload() -> tuple[list[list[int]], list[int]]:
    """The prompts and output lengths of nano-vllm's benchmark, drawn in its order."""
    rng = Random(0)
    prompts = [[rng.randint(0, 10000) for _ in range(rng.randint(100, 1024))] for _ in range(256)]
    return prompts, [rng.randint(100, 1024) for _ in range(256)]


class Driver:
    """One engine, quire's or vLLM's, and the workloads."""

    def __init__(self, package: str, folder: str) -> None:
        settings: dict[str, Any] = {"load_format": "dummy", "dtype": "bfloat16", "max_model_len": 4096}
        if package == "vllm":
            settings |= {"skip_tokenizer_init": True, "gpu_memory_utilization": 0.8}
        else:
            settings |= {"max_num_seqs": 1024, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.8}
            settings["batch_invariant"] = package == "quire-invariant"
        module = __import__(package.partition("-")[0])
        self.params = module.SamplingParams
        self.llm = module.LLM(folder, **settings)

    def generate(self, prompts: list[list[int]], lengths: list[int], temperature: float = 0.0) -> float:
        """Seconds."""
        self.llm.reset_prefix_cache()
        params = [
            self.params(temperature=temperature, ignore_eos=True, max_tokens=n, detokenize=False) for n in lengths
        ]
        began = time.perf_counter()
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - began
        assert [len(o.outputs[0].token_ids) for o in outputs] == lengths
        return seconds

    def A(self, repeat: int = 3) -> list[float]:
        prompts, lengths = nano_workload()
        return [sum(lengths) / self.generate(prompts, lengths, 0.6) for _ in range(repeat)]

    def E(self, repeat: int = 3) -> list[float]:
        prompts = [_ids(Random(i), 128) for i in range(1024)]
        return [1024 * 128 / self.generate(prompts, [128] * 1024) for _ in range(repeat)]

    def one(self, repeat: int = 3) -> list[float]:
        return [self.generate([_ids(Random(i), 32)], [512]) / 512 * 1e3 for i in range(repeat)]

    def ttft(self, repeat: int = 7) -> list[float]:
        return [self.generate([_ids(Random(i), 2048)], [1]) * 1e3 for i in range(repeat)]


def _ids(rng: Random, n: int) -> list[int]:
    return [rng.randint(0, 10000) for _ in range(n)]


def work(package: str, folder: str, sections: list[str]) -> None:
    """The child process: print one JSON object of measurements."""
    driver = Driver(package, folder)
    driver.generate([_ids(Random(0), 16)], [1])
    results: dict[str, Any] = {"start": [time.time() - BEGAN]}
    for section in sections:
        run = getattr(driver, section)
        run(repeat=2)  # every batch size comes up twice: the first time compiles, the second captures
        results[section] = run()
    print("RESULT", json.dumps(results))


def work_hf(folder: str) -> None:
    """Hugging Face transformers, eager: one request, and the first token."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_default_device("cuda")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None

    def seconds(prompt: int, new: int) -> float:
        ids = torch.tensor([_ids(Random(prompt), prompt)])
        torch.cuda.synchronize()
        began = time.perf_counter()
        model.generate(ids, do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(32, 16)
    results = {"one": [seconds(32, 128) / 128 * 1e3], "ttft": [seconds(2048, 1) * 1e3 for _ in range(3)]}
    print("RESULT", json.dumps(results))


# ------------------------------------------------------------------------------------------------ in the first process


def floors(config: dict[str, Any], read: float, matrix: float) -> dict[str, float]:
    """Each section's figure if nothing cost anything but memory traffic and, for prompts, matrix products."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    q, kv = config["num_attention_heads"] * config["head_dim"], 8 * config["head_dim"]
    layer = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * ffn
    weights = config["num_hidden_layers"] * layer + hidden * config["vocab_size"]
    per_token = 2 * 2 * kv * config["num_hidden_layers"]  # bytes of K and V

    def seconds(prompts: list[int], lengths: list[int]) -> float:
        contexts = sum(n * (n - 1) // 2 + n * p for p, n in zip(prompts, lengths))
        reading = contexts * per_token + max(lengths) * weights * 2
        operations = 2 * (weights - hidden * config["vocab_size"]) * sum(prompts)
        operations += sum(2 * p * p * q for p in prompts) * config["num_hidden_layers"]
        return reading / read + operations / matrix

    prompts, lengths = nano_workload()
    return {
        "A": sum(lengths) / seconds([len(p) for p in prompts], lengths),
        "E": 1024 * 128 / seconds([128] * 1024, [128] * 1024),
        "one": seconds([32], [512]) / 512 * 1e3,
        "ttft": seconds([2048], [1]) * 1e3,
    }


def child(package: str, folder: str, sections: list[str], **environment: str) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", package, folder, ",".join(sections)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        print(done.stdout[-3000:], done.stderr[-6000:], file=sys.stderr)
        return {}
    return json.loads(lines[-1].removeprefix("RESULT"))


def main() -> None:
    from benchmarks.kernels import Ceilings, measure
    from quire.report import Row, show, write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--vllm", metavar="SITE", help="folder with vLLM, to be put on PYTHONPATH")
    parser.add_argument("--hf", action="store_true", help="measure transformers too")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    sections = args.sections.split(",")
    measured = [section for section in ("A", "E", "one", "ttft") if section in sections]
    limits = Ceilings()  # in bytes and operations per microsecond
    rows = [Row("read", limits.read / 1e6, "TB/s"), Row("matrix", limits.matrix / 1e6, "TFLOP/s")]
    if "kernel" in sections:
        rows += measure(limits)
    for model in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(MODELS[model]))
            found: dict[str, dict[str, list[float]]] = {}
            cold = child("quire", folder, [], TRITON_CACHE_DIR=f"{folder}/triton") if "start" in sections else {}
            found["quire"] = child("quire", folder, measured, TRITON_CACHE_DIR=f"{folder}/triton")
            if args.vllm:
                # FlashInfer's sampler, which may be missing, serves top-k and top-p: nobody here asks for them.
                settings = {"PYTHONPATH": args.vllm, "HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
                found["vllm"] = child("vllm", folder, measured, **settings)
            if args.hf:
                found["hf"] = child("hf", folder, measured)
            more = child("quire-invariant", folder, ["A"]) if "invariant" in sections else {}
        found["floor"] = {k: [v] for k, v in floors(MODELS[model], limits.read * 1e6, limits.matrix * 1e6).items()}
        for section in measured:
            value = median(found["quire"].get(section, [float("nan")]))
            more_is_better = section in ("A", "E")
            peers = {p: median(f[section]) for p, f in found.items() if p != "quire" and section in f}
            ratios = {p: value / v if more_is_better else v / value for p, v in peers.items()}
            unit = {"A": "output tok/s", "E": "output tok/s", "one": "ms per token", "ttft": "ms"}[section]
            rows.append(Row(f"{section}/{model}", value, unit, ratios))
            if section == "A" and more:
                invariant = median(more["A"])
                rows.append(Row(f"A-invariant/{model}", invariant, unit, {"A": invariant / value}))
        for kind, result in (("cold", cold), ("warm", found["quire"])):
            if "start" in sections and result:
                rows.append(Row(f"start/{model}-{kind}", result["start"][0], "s"))
        show(rows, "quire on a GPU")  # after each model: a run that is cut short has said something
        if args.json:
            write(args.json, rows, "python -m benchmarks.gpu")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        package, folder, sections = sys.argv[2:5]
        if package == "hf":
            work_hf(folder)
        else:
            work(package, folder, [s for s in sections.split(",") if s])
    else:
        main()
