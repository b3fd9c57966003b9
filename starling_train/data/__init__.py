"""Text: conversations, chat templates, prompts, rankings and pairs."""
