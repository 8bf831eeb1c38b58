"""The language model stages: prefill and decode workers around vLLM engines, and their embedding connector."""
