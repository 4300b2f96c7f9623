"""What a site does when it is asked: its inventory, its local work, its text."""
