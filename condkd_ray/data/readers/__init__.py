"""File layouts of image sets, and nothing else. All is read in place; nothing is written, nothing unpickled.

The one exception to the last is `known.torchvision_set`: torchvision checks the md5 of its files first.
"""
