"""Labelled pictures from anywhere -> a dataset of kind `images`: folders, tar files, tables."""
