"""What runs on the other side of the wall: standard library only, imported under another root, never by the rest.

Modules here import each other and nothing else of blockexpand: inside the sandbox this folder is all there is of it.
Each start counts (a sample pays for it), so heavy modules of the standard library are imported where they are needed.
"""
