"""An HTTP server of one model, with OpenAI's chat completions. Its packages are the extra `serve`."""
