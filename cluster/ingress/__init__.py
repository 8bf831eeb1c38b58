"""The HTTP front: vLLM's own OpenAI application over Triptych's pipeline, without pixels and without weights."""
