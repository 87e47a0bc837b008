"""One module per endpoint. Each has a ``router``; what a route needs it gets with ``ServerState.of(request)``."""
