"""Small tools on an exported GGUF: chat, summarise, rewrite, title, agent."""
