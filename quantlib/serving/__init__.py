"""vLLM's OpenAI server on a checkpoint: which arguments, and the process. Imports no vLLM."""
