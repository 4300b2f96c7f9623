"""The command `lacuna-site`: every verb calls one function elsewhere."""
