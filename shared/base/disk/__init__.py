"""The disk itself: the calls of the system that change it, and locks; shared/base/files.py is what others use."""
