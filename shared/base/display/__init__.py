"""What a person sees: bars and tables on a terminal, pages in a browser."""
