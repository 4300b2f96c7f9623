"""The site's node on Flower's network: started, watched, explained."""
