"""The rules of the code that no linter knows: who imports whom, and how large a piece may be.

`python -m house` reads the three source folders as text and imports nothing of them. docs/rules.md lists the rules;
`[tool.medtrain.house]` in pyproject.toml holds the size of the core and the exceptions.
"""
