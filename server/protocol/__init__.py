"""OpenAI's API as data: one module per endpoint with the request's and the responses' models."""
