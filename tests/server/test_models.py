"""/v1/models, asked with OpenAI's own client."""

from __future__ import annotations

import asyncio

import huggingface_hub
import openai
import pytest

from quire.assets import load_assets
from quire.reference.config import EngineConfig
from quire.server.config import ServerConfig
from quire.zoo import model_path
from tests.reference.ghost import GhostRunner, ghost_engine
from tests.server.conftest import serve
from tests.server.toy_app import http, toy_app


def client(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def test_the_model_is_listed_under_its_own_name(server) -> None:
    (model,) = client(server).models.list().data
    assert (model.id, model.object, model.owned_by) == ("pocket", "model", "quire")
    assert (model.root, model.max_model_len) == ("pocket", server.engine.model.max_model_len)
    assert model.created == server.state.created
    assert client(server).models.retrieve("pocket") == model


def test_a_model_from_the_hub_keeps_its_name_and_a_folder_has_its_own(tmp_path, monkeypatch) -> None:
    commit = tmp_path / "models--acme--tiny" / "snapshots" / "0123456789abcdef"
    commit.parent.mkdir(parents=True)
    commit.symlink_to(model_path("pocket"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(commit))
    monkeypatch.chdir(model_path("pocket"))
    for model, name in (("acme/tiny", "acme/tiny"), (f"{commit}/", "0123456789abcdef"), (".", "pocket")):
        assert load_assets(EngineConfig(model=model)).name == name
    with serve(EngineConfig(model="acme/tiny"), engine=ghost_engine(GhostRunner())) as live:
        assert client(live).models.retrieve("acme/tiny").id == "acme/tiny"


def test_every_given_name_is_listed_and_found_slashes_and_all() -> None:
    names = ("org/family/model-7b", "alias", "with space")
    with serve(engine=ghost_engine(GhostRunner()), server=ServerConfig(served_model_name=names)) as live:
        sdk = client(live)
        listed = sdk.models.list().data
        assert tuple(model.id for model in listed) == names
        assert [sdk.models.retrieve(name) for name in names] == listed
        with live.http() as raw:  # a client that does not escape the slashes
            assert raw.get("/v1/models/org/family/model-7b").json()["id"] == "org/family/model-7b"
        with pytest.raises(openai.NotFoundError):
            sdk.models.retrieve("pocket")  # its own name is not among them


@pytest.mark.parametrize("name", ["gpt-4o", "pocket/", "org/pocket", "Pocket"])
def test_other_names_are_not_found(server, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client(server).models.retrieve(name)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert name in caught.value.message and "pocket" in caught.value.message


async def answer_without_an_engine() -> tuple[int, str]:
    async with http(toy_app()) as raw:
        response = await raw.get("/v1/models")
        return response.status_code, response.json()["error"]["code"]


def test_nothing_is_known_of_the_model_before_the_engine_is_there() -> None:
    assert asyncio.run(answer_without_an_engine()) == (503, "engine_unavailable")
