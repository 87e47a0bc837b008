"""/v1/embeddings: its request, and the documentation of its response."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from quire.reference.control.params import PoolingParams
from quire.server.protocol.base import RequestModel, accepted
from quire.server.protocol.common import PromptInput, Usage


class EmbeddingRequest(RequestModel):
    """OpenAI's fields, vLLM's, and ``pooling``, which in vLLM belongs to the model."""

    REFUSED: ClassVar = {
        "messages": ("conversations are not rendered here", "Give the token ids that /tokenize makes of them as input"),
        "embed_dtype": ("numbers are float32", "Leave it out"),
        "endianness": ("base64 is of little-endian numbers", "Leave it out"),
    }

    model: str | None = Field(None, description="one of /v1/models; default: the first")
    input: PromptInput = Field(description="text, token ids, or a list of either")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="numbers (the default), or base64 of little-endian float32"
    )
    dimensions: int | None = Field(None, description="keep the first so many numbers, before normalising; default: all")
    user: Annotated[str | None, accepted("there are no accounts to attribute requests to")] = None
    # vLLM's
    pooling: Literal["mean", "last"] | None = Field(
        None, description="of which hidden states: the mean of all (the default), or the last token's"
    )
    normalize: bool | None = Field(None, description="divide by the Euclidean length; default true")
    use_activation: bool | None = Field(None, description="newer name of normalize")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="keep so many tokens of each input, the context's length with -1; default: refuse more"
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="which end of it goes then; default right, which keeps the first tokens"
    )
    add_special_tokens: bool | None = Field(None, description="put the begin token before texts; default true")
    priority: int | None = Field(None, description="lower runs first, with scheduling_policy=priority")
    cache_salt: str | None = Field(None, min_length=1, description="keeps its blocks apart in the prefix cache")

    def pooling_params(self) -> PoolingParams:
        """The engine's parameters. Raises ``RequestError``."""
        normalize = self.normalize if self.use_activation is None else self.use_activation
        return PoolingParams(
            pooling=self.pooling or "mean", normalize=normalize is not False, dimensions=self.dimensions
        )


class Embedding(BaseModel):
    """One input's vector: numbers, or base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """The response: a vector for each input, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Embedding]
    usage: Usage
