"""The fast data plane's runner: executes step plans on a GPU without ever waiting for it.

One idea per file:

    rows.py         what lasts from step to step lives on the device; only a plan's differences are uploaded
    upload.py       numbers for the device go through pinned memory, so that the host does not wait
    inputs.py       one small kernel turns rows and lengths into a step's token ids, positions, slots and block tables
    launched.py     a step between its forward pass and its sampling
    graphs.py       decode steps are CUDA graphs, one for the forward pass and one for sampling, by batch size
    sampling.py     from hidden states to tokens in the rows, with what few requests ask for: rules, grammars, logprobs
    results.py      tokens go back through pinned memory on a second stream; whoever wants them waits for that alone
    drafts.py       where drafts come from, and those that are looked up on the host
    lookup.py       those of the prompt, looked up on the device
    draft_model.py  those of a small model, made on the device
    swap.py         blocks of preempted sequences move to host memory and back on a stream of their own
    memory.py       what a step takes besides the KV cache, measured once
    runner.py       the order of things
"""

from quire.fast.runner.runner import ModelRunner

__all__ = ["ModelRunner"]
