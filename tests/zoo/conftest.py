import pytest
from tokenizers import Tokenizer

from quire.zoo import model_path


@pytest.fixture(scope="session")
def pocket_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_path("pocket") / "tokenizer.json"))
