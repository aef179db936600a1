"""What mkdocs calls while it builds the site, `hooks:` in mkdocs.yml: it adds the pages that are made from the code."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docsite.pages import pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages to those of `docs/`."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files
