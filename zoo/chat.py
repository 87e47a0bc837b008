"""The chat format in Python: the text that chat_template.jinja renders, faster (training needs millions).

A test keeps the two equal. `loss_weights` finds the parts that the assistant says.
"""

import json

import numpy as np

START, END, PAD, TEXT = "<|im_start|>", "<|im_end|>", "<|pad|>", "<|endoftext|>"
SPECIAL = (TEXT, START, END, PAD)  # ids 0 to 3
TAGS = ("<tool_call>", "</tool_call>")  # one token each, but visible in the decoded text


def render(messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
    """The prompt text of a conversation; assistant tool calls stand in the content here."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    parts = []
    if tools:
        lines = [json.dumps(tool, ensure_ascii=False) for tool in tools]
        opening = "" if system is None else system + "\n\n"
        parts.append(f"{START}system\n{opening}You may call these tools:\n" + "\n".join(lines) + f"{END}\n")
    elif system is not None:
        parts.append(f"{START}system\n{system}{END}\n")
    for message in messages if system is None else messages[1:]:
        parts.append(f"{START}{message['role']}\n{message['content']}{END}\n")
    if add_generation_prompt:
        parts.append(f"{START}assistant\n")
    return "".join(parts)


def loss_weights(ids: np.ndarray, start: int, end: int, assistant: int, prompt_weight: float) -> np.ndarray:
    """1 for every token that the assistant must produce (its <|im_end|> included), prompt_weight elsewhere.

    ids: [n] token ids of one rendered conversation; `assistant` is the id of the role's name.
    """
    weights = np.full(len(ids), prompt_weight, dtype=np.float32)
    opens = np.flatnonzero((ids[:-1] == start) & (ids[1:] == assistant)) + 3  # <|im_start|> assistant \n
    ends = np.flatnonzero(ids == end)
    for first, last in zip(opens, ends[np.searchsorted(ends, opens)], strict=True):
        weights[first : last + 1] = 1.0
    weights[0] = 0.0  # nothing predicts the first token
    return weights
