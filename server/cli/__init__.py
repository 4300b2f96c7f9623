"""The command `lacuna`: every verb calls one function elsewhere."""
