"""Reference pages as Markdown, one module a page, each rendered from the code it describes."""
