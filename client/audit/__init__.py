"""Does a bundle remember the subjects that it was trained on?"""
