"""Writes docs/guides/from-vllm.md: what of vLLM's arguments quire has. ``python docs/generate_from_vllm.py``.

Every argument of quire must be said to be vLLM's own, different or ours, or this fails: ``tests/test_docs.py`` runs it.
What vLLM has besides is a list by hand, of vLLM 0.22; nobody can keep that one complete but a reader.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from quire import BeamSearchParams, EngineConfig, PoolingParams, SamplingParams, StructuredOutputsParams
from quire.server.config import ServerConfig

PAGE = Path(__file__).parent / "guides" / "from-vllm.md"
SAME = ""

TEXT = """\
# Coming from vLLM

<!-- Written by docs/generate_from_vllm.py, which knows all arguments of quire. Change it there, then run it again. -->

Most of it is replacing one word:

```python
from quire import LLM, SamplingParams

llm = LLM("pocket", max_num_seqs=16)
[output] = llm.generate(["Once upon a time"], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
print(output.outputs[0].text)
#  there was a kind ant named Mona.
```

`vllm serve MODEL` is `quire serve MODEL`, with the same flags where they exist; `/metrics` has vLLM's names under
`quire:`; `--config FILE` reads the same YAML. What differs on purpose:

- **Nothing is ignored.** An argument that quire does not know, or that would have no effect, is refused by name.
- **Models**: Llama 2 and 3, Mistral, Qwen2, Qwen3, GPT-2 and OPT, from safetensors with 16 or 32 bits per weight.
- **One device.** Tensor, pipeline and expert parallelism are not there yet, nor LoRA, images, quantization, MoE.
- **A seed is a promise**: the same text whatever else the server does, up to
  [ties](../design.md#2-determinism-is-a-feature), and bit by bit with `batch_invariant=True`.
- **Swap** is there still (`preemption_mode="swap"`), and so is beam search within the engine.

## Engine arguments

{engine}

## Sampling parameters

{sampling}

## The server

{server}

Endpoints and every field of a request: [the HTTP API](../api.md).
"""

# name -> how it stands to vLLM's. SAME: vLLM's name and meaning.
OURS = "quire's own"
ENGINE = {
    **dict.fromkeys(
        "model tokenizer dtype max_model_len gpu_memory_utilization kv_cache_memory_bytes max_num_seqs "
        "max_num_batched_tokens enable_chunked_prefill scheduling_policy enforce_eager trust_remote_code "
        "revision enable_prefix_caching".split(),
        SAME,
    ),
    "model": "also the name of a model that ships with quire: `pocket`, the default",
    "backend": OURS + ": reference or fast plane",
    "device": "vLLM finds out for itself; so does `auto`",
    "load_format": "`auto` (safetensors) and `dummy` only",
    "dtype": "the same names; on a CPU `auto` means float32 for 16-bit checkpoints",
    "seed": "the same; a request without a seed gets its own from this one and its place in the order of arrival",
    "block_size": "any size, on any device",
    "num_blocks": "vLLM: `num_gpu_blocks_override`; block 0 counts and is never handed out",
    "swap_space": "vLLM's older argument, for preemption by swap",
    "preemption_mode": "vLLM's older argument; vLLM recomputes always",
    "batch_invariant": "vLLM: the environment variable `VLLM_BATCH_INVARIANT`",
    "async_scheduling": "the same; None means on a GPU",
    "generation_config": "`auto` or `none` (vLLM's `vllm`)",
    "trace": OURS + ": records every step",
    "trace_redact": OURS,
    "verify": OURS + ": shadow verification",
    "verify_dir": OURS,
    "speculative_config": "the same names for `ngram`, `suffix`, `draft_model`; `verification` and `adaptive` are ours",
    "speculative_model": "vLLM's older argument",
    "num_speculative_tokens": "vLLM's older argument",
}
SAMPLING = {
    **dict.fromkeys(
        "n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop "
        "stop_token_ids bad_words ignore_eos max_tokens min_tokens detokenize skip_special_tokens "
        "include_stop_str_in_output logit_bias allowed_token_ids structured_outputs".split(),
        SAME,
    ),
    "best_of": "vLLM's older argument: the best `n` of so many",
    "bad_words_token_ids": OURS + ": the same as token ids",
    "logprobs": "the same, of the raw logits (vLLM's default mode); `-1` is not taken",
    "prompt_logprobs": "the same; `-1` is not taken",
    "speculative": OURS + ": False leaves speculation out for one request",
}
BEAMS = {
    **dict.fromkeys("beam_width max_tokens ignore_eos length_penalty".split(), SAME),
    "stop_token_ids": OURS,
    "skip_special_tokens": OURS,
}
POOLING = {
    "pooling": "vLLM: part of the model's pooler configuration",
    "normalize": "vLLM: `use_activation`",
    "dimensions": SAME,
}
STRUCTURED = {
    **dict.fromkeys("json regex choice grammar json_object disable_any_whitespace whitespace_pattern".split(), SAME),
    "grammar": "Lark's syntax, as llguidance reads it",
}
SERVER = {
    **dict.fromkeys(
        "host port served_model_name allowed_origins allowed_methods allowed_headers allow_credentials chat_template "
        "tool_call_parser reasoning_parser api_server_count otlp_traces_endpoint api_key".split(),
        SAME,
    ),
    "api_key": "the same, any number of them",
    "api_key_file": OURS,
    "public_metrics": OURS + ": whether /metrics answers without a key",
    "tool_call_parser": "`auto` finds it by the chat template; tools need no `--enable-auto-tool-choice`",
    "reasoning_parser": "`auto` finds it by the chat template",
    "max_body_size": OURS,
    "max_concurrent_requests": OURS,
    "max_stored_responses": OURS,
    "request_timeout": OURS,
    "shutdown_timeout": "the same idea: seconds that running requests get",
    "restart_engine": OURS,
    "log_requests": "vLLM: `--enable-log-requests`; here it is on",
    "log_format": OURS,
    "ui": OURS + ": the playground",
    "enable_trace": OURS + ": GET /trace",
    "trace_text": OURS,
}

# vLLM's that quire refuses: name -> what to do instead, or when.
NOT_ENGINE = {
    "tensor_parallel_size, pipeline_parallel_size, data_parallel_size, …": "not yet: one device",
    "quantization, kv_cache_dtype": "not yet: weights and K/V in 16 or 32 bits",
    "enable_lora, max_loras, …": "not yet",
    "limit_mm_per_prompt, mm_processor_kwargs, …": "not yet: text only",
    "kv_transfer_config, kv_offloading_size": "not yet: K/V stays with its engine, but for swap",
    "compilation_config, cudagraph_capture_sizes, max_seq_len_to_capture": "graphs are captured as sizes come up",
    "cpu_offload_gb": "not yet: weights stay on the device",
    "hf_overrides, rope_scaling, rope_theta": "edit config.json",
    "tokenizer_mode, skip_tokenizer_init": "prompts as token ids with `detokenize=False` need no tokenizer",
    "max_logprobs": "always 1,024",
    "long_prefill_token_threshold, max_num_partial_prefills": "prompts share a step in order of arrival",
    "prefix_caching_hash_algo": "one: BLAKE2b",
    "disable_log_stats": "statistics are always there: `llm.stats()`, `/metrics`",
    "runner, convert, task": "a generating model also embeds: `llm.embed`, `/v1/embeddings`",
    "model_impl": "one: quire's own",
    "logits_processors": "not yet: `logit_bias`, `bad_words`, `allowed_token_ids` and grammars",
    "attention_backend, VLLM_ATTENTION_BACKEND": "`backend`: the reference or the fast plane",
}
NOT_SAMPLING = {
    "output_kind, stream_interval": "`llm.stream` yields what is new, `llm.generate` the whole",
    "logprob_token_ids, flat_logprobs, prompt_logprob_token_ids": "not yet",
    "spaces_between_special_tokens": "as the tokenizer says",
    "repetition_detection, thinking_token_budget": "not yet",
    "extra_args": "there are no plugins",
    "structural_tag, disable_additional_properties": "not yet; a JSON schema says `additionalProperties` itself",
}
NOT_SERVER = {
    "ssl_keyfile, ssl_certfile, …": "TLS is for the proxy in front",
    "root_path": "for the proxy, or mount `build_app(...)`",
    "enable_auto_tool_choice": "not needed",
    "lora_modules": "not yet",
    "uvicorn_log_level": "`QUIRE_LOGGING_LEVEL`",
    "middleware": "mount `build_app(...)` in an application of your own",
    "chat_template_content_format": "found by the template",
}


def table(classes: dict[type, dict[str, str]], missing: dict[str, str]) -> str:
    """Every field of the classes, with how it stands to vLLM's, and what vLLM has besides."""
    lines = ["| argument | in quire | |", "| --- | --- | --- |"]
    for cls, known in classes.items():
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if set(names) != set(known):
            raise ValueError(f"{cls.__name__}: say how {sorted(set(names) ^ set(known))} stands to vLLM's")
        for name in names:
            note = known[name]
            status = "supported" if note == SAME else "quire's own" if note.startswith(OURS) else "differs"
            about = note.removeprefix(OURS).removeprefix(": ")
            where = "" if cls is next(iter(classes)) else f" of `{cls.__name__}`"
            lines.append(f"| `{name}`{where} | {status} | {about} |")
    for names_, note in missing.items():
        shown = ", ".join(name if name == "…" else f"`{name}`" for name in names_.split(", "))
        status = "not yet" if note.startswith("not yet") else "refused"
        lines.append(f"| {shown} | {status} | {note.removeprefix('not yet').lstrip(':;, ')} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    sampling = {
        SamplingParams: SAMPLING,
        StructuredOutputsParams: STRUCTURED,
        BeamSearchParams: BEAMS,
        PoolingParams: POOLING,
    }
    return TEXT.format(
        engine=table({EngineConfig: ENGINE}, NOT_ENGINE),
        sampling=table(sampling, NOT_SAMPLING),
        server=table({ServerConfig: SERVER}, NOT_SERVER),
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
