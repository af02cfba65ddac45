"""A page in the browser to chat with a run about pictures and videos. Its packages are the extra `app`."""
