"""A trained model in use: loaded, exported, laid over volumes, and scored."""
