"""pocket's tokenizer: byte-level BPE of 4,096 tokens, trained on the generated world, one token per digit.

python -m quire.zoo.tokenizer --out zoo/pocket
"""

import argparse
import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from quire.zoo import world
from quire.zoo.chat import END, PAD, SPECIAL, TAGS, TEXT, render

VOCABULARY = 4096


def corpus(conversations: int, seed: int = 0) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(conversations):
        example = world.conversation(rng, 512)
        yield render(example.messages, example.tools)
        if rng.random() < 0.1:
            yield world.plain_text(rng)


def train(conversations: int = 60_000) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # Digits are split off before BPE sees them, so no merge can ever join two of them.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(conversations), trainer)
    # Not "special": decoding must keep them, because parsers of tool calls look for them in the text.
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, max_length: int = 2048) -> None:
    """The files that transformers' AutoTokenizer reads, chat template included."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = resources.files("quire.zoo").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": TEXT,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=60_000, help="how much text to learn it from")
    args = parser.parse_args()
    tokenizer = train(args.conversations)
    save(tokenizer, args.out)
    print(f"{tokenizer.get_vocab_size()} tokens in {args.out}")


if __name__ == "__main__":
    main()
