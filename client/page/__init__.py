"""The site's page: its subjects in three planes, what is filled in, what left, what was asked, and a person's word."""
