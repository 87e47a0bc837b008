"""Structured outputs: text that follows a JSON schema, a regular expression, a list of choices or a grammar.

``compiler``   turns ``StructuredOutputsParams`` into a grammar over a tokenizer's vocabulary; chose the library
``matchers``   one matcher per sequence: which tokens may come next. The engine asks it for a mask per sampled position
``validator``  says beforehand whether a grammar is usable, in a process of its own that is killed at a time limit

Nothing here is imported before the first structured request, and the library neither.
"""
