"""instructor against a live server: objects of a pydantic class out of a chat, in each way of asking."""

from __future__ import annotations

import instructor
import openai
import pytest
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.parametrize("mode", [instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS])
def test_an_object_comes_back(scripted, mode):
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="unused", max_retries=0) as sdk:
        person = instructor.from_openai(sdk, mode=mode).chat.completions.create(
            model=scripted.state.model_names[0],
            messages=[{"role": "user", "content": "Who is Ada?"}],
            response_model=Person,
            max_retries=0,
        )
    assert isinstance(person, Person) and person.model_dump() == {"name": "Ada", "age": 36}
