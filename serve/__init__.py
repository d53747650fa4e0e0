"""A zero-config OpenAI-compatible server over the engine: `acorn serve REF`."""
